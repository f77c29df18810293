"""Reports: one HTML page about one run or several, which opens offline."""

from largebatch.report.page import write_report
from largebatch.report.runs import Run, read_run

__all__ = ["Run", "read_run", "write_report"]
