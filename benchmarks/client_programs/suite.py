"""Another project's test file, run by pytest, with how each of its tests ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcomes


class Collected:
    """A plug-in of pytest that keeps how each test ended."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            lines = [
                line[2:].strip() for line in report.longreprtext.splitlines() if line[:2] == "E "
            ]
            self.outcomes.ended[name] = f"failed: {(lines or ['?'])[0][:200]}"
        elif report.skipped:
            self.outcomes.ended.setdefault(name, f"not run: {report.longrepr[-1][:120]}")
        elif report.when == "call":
            self.outcomes.ended.setdefault(name, "passed")
        self.outcomes.write()


def run(outcomes: Outcomes, file: Path, options: Sequence[str] = ()) -> None:
    """Run the tests of ``file``; a file that cannot be collected is a failure of its own."""
    code = pytest.main(
        [str(file), "-q", "-p", "no:cacheprovider", *options],
        plugins=[Collected(outcomes)],
    )
    if code > 1:
        outcomes.ended[file.name] = f"failed: pytest ended with {code!s}"
    outcomes.write()
