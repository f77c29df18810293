"""What a run leaves behind: its directory, its metrics, and the record of a benchmark."""

from largebatch.record.benchmark import BenchmarkRecord, environment, read_record, write_record
from largebatch.record.files import write_atomically
from largebatch.record.metrics import MetricsWriter, read_metrics
from largebatch.record.run_directory import RunDirectory
from largebatch.record.tensorboard import TensorBoardMirror

__all__ = [
    "BenchmarkRecord",
    "MetricsWriter",
    "RunDirectory",
    "TensorBoardMirror",
    "environment",
    "read_metrics",
    "read_record",
    "write_atomically",
    "write_record",
]
