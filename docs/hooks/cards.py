"""Pages whose text lies elsewhere in the repository, beside what it is about."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CARDS = {
    "largebatch/optim/README.md": "methods/optimizers.md",
    "largebatch/nn/README.md": "methods/norms.md",
    "largebatch/nn/WEIGHTS.md": "methods/weights.md",
    "largebatch/nn/CONTRAST.md": "methods/contrastive.md",
    "largebatch/engine/README.md": "methods/engines.md",
    "largebatch/probes/README.md": "methods/noise.md",
    "largebatch/probes/CURVATURE.md": "methods/curvature.md",
    "largebatch/tasks/README.md": "methods/tasks.md",
    "largebatch/study/README.md": "methods/studies.md",
    "largebatch/landscape/README.md": "methods/landscapes.md",
    "largebatch/lab/README.md": "methods/lab.md",
    "benchmarks/README.md": "records.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository and the pages of the site that show them."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def card(source: str, page: str) -> str:
    """Return a file's text as a page: links to what the site shows go there."""
    folder = (ROOT / source).parent

    def link(found: re.Match[str]) -> str:
        picture, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target:
            return found[0]
        name = (folder / target).resolve().relative_to(ROOT).as_posix()
        shown = CARDS.get(name) or (name[len("docs/") :] if name.startswith("docs/") else None)
        if name == "README.md":
            shown = "index.md"
        if shown is None:  # a file that is in the repository alone
            return words if "`" in words else f"{words} (`{name}`)"
        return f"{picture}[{words}]({os.path.relpath(shown, Path(page).parent)}{anchor})"

    wide = "---\nhide: [toc]\n---\n" if page == "records.md" else ""  # its table needs the room
    return wide + LINK.sub(link, (ROOT / source).read_text(encoding="utf-8"))
