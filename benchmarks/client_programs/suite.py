"""Another project's test file, run by pytest, with how each of its tests ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcomes

ERROR = re.compile(r"[\w.]*(Error|Exception)\b")


def first_line(report: str) -> str:
    """Return the first line of a failure's error; of a rank's, where ranks are processes."""
    lines = [line[2:].strip() for line in report.splitlines() if line[:2] == "E "] or ["?"]
    if "exited with error code" in lines[0]:
        ends = [at for at, line in enumerate(lines) if at and "exited with error code" in line]
        errors = [line for line in lines[1 : (ends or [None])[0]] if ERROR.match(line)]
        return (errors or lines)[-1]  # the last of a chain is what the test says
    return lines[0]


class Collected:
    """A plug-in of pytest that keeps how each test ended."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.outcomes.ended[name] = f"failed: {first_line(report.longreprtext)[:200]}"
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
