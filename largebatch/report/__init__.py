"""Pictures from records: one offline HTML page for one run or for many."""

from largebatch.report.page import write_report
from largebatch.report.runs import Run, read_run

__all__ = ["Run", "read_run", "write_report"]
