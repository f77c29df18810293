"""Data: which sample comes next, how a sample is read, and how a batch reaches the device.

A :class:`Source` is a data set, a request names the samples of one forward pass, and a reader turns
requests into batches. Importing this package registers every data set that ``data.name`` can name.
"""

from largebatch.data import arrays, cifar, digits, imagefolder, mnist, quadratic, synthetic, text
from largebatch.data.batch import Batch
from largebatch.data.build import build_source, settled
from largebatch.data.config import DataConfig
from largebatch.data.dali import require_dali
from largebatch.data.feature_batch import FeatureBatch
from largebatch.data.image_batch import ImageBatch
from largebatch.data.image_source import ImageSource
from largebatch.data.mixing import Mixed
from largebatch.data.order import EpochOrder, Permutation
from largebatch.data.pipeline import Pipeline
from largebatch.data.registry import datasets
from largebatch.data.request import Request
from largebatch.data.source import Delivery, Order, Reader, Source
from largebatch.data.stream_order import StreamOrder
from largebatch.data.text import TextSource
from largebatch.data.token_batch import TokenBatch
from largebatch.data.view_batch import ViewBatch
from largebatch.data.views import ViewSource

__all__ = [
    "Batch",
    "DataConfig",
    "Delivery",
    "EpochOrder",
    "FeatureBatch",
    "ImageBatch",
    "ImageSource",
    "Mixed",
    "Order",
    "Permutation",
    "Pipeline",
    "Reader",
    "Request",
    "Source",
    "StreamOrder",
    "TextSource",
    "TokenBatch",
    "ViewBatch",
    "ViewSource",
    "arrays",
    "build_source",
    "cifar",
    "datasets",
    "digits",
    "imagefolder",
    "mnist",
    "quadratic",
    "require_dali",
    "settled",
    "synthetic",
    "text",
]
