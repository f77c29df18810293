"""How a client's checks end: written to the file that its program is given."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


class Outcomes:
    """Runs checks one by one and writes how each ended."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.ended: dict[str, str] = {}

    def check(self, name: str, body: Callable[[], None]) -> None:
        """Run ``body``; what it raises is the check's failure."""
        try:
            body()
            self.ended[name] = "passed"
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            first = (str(error).strip().splitlines() or [""])[0]
            self.ended[name] = f"failed: {type(error).__name__}: {first[:200]}"
        self.write()

    def write(self) -> None:
        """Put on disk what is known so far."""
        self.file.write_text(json.dumps(self.ended))
