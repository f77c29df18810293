"""The files that a run leaves behind: its directory, its metrics, and records of benchmarks.

Files are written atomically or line by line, so that a killed run loses nothing, and JSON never
holds NaN or infinity.
"""

from largebatch.record.benchmark import (
    BenchmarkRecord,
    environment,
    markdown_table,
    read_record,
    write_record,
)
from largebatch.record.files import NotRegular, open_regular, read_file, write_atomically
from largebatch.record.json_text import is_number, json_text, parse_json
from largebatch.record.metrics import SIDE, MetricsWriter, read_metrics
from largebatch.record.run_directory import RunDirectory, confirm_owned
from largebatch.record.tensorboard import TensorBoardMirror

__all__ = [
    "SIDE",
    "BenchmarkRecord",
    "MetricsWriter",
    "NotRegular",
    "RunDirectory",
    "TensorBoardMirror",
    "confirm_owned",
    "environment",
    "is_number",
    "json_text",
    "markdown_table",
    "open_regular",
    "parse_json",
    "read_file",
    "read_metrics",
    "read_record",
    "write_atomically",
    "write_record",
]
