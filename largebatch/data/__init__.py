"""Data: which sample comes next, how it is read, and how it reaches the device.

Importing this package registers every data set that a config can name.
"""

from largebatch.data import arrays, cifar, digits, imagefolder, mnist, synthetic
from largebatch.data.build import build_source
from largebatch.data.config import DataConfig
from largebatch.data.dali import require_dali
from largebatch.data.mixing import Mixed
from largebatch.data.order import EpochOrder, Permutation
from largebatch.data.pipeline import Pipeline
from largebatch.data.request import Batch, Request
from largebatch.data.source import Source, datasets

__all__ = [
    "Batch",
    "DataConfig",
    "EpochOrder",
    "Mixed",
    "Permutation",
    "Pipeline",
    "Request",
    "Source",
    "arrays",
    "build_source",
    "cifar",
    "datasets",
    "digits",
    "imagefolder",
    "mnist",
    "require_dali",
    "synthetic",
]
