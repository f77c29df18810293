"""The step simulator behind ``largebatch plan``."""

from largebatch.simulate.methods import METHODS, Method
from largebatch.simulate.scaling import Cluster, Prediction
from largebatch.simulate.step import Compute, Contention, Event, Step, bucket, simulate
from largebatch.simulate.trace import Trace, trace

__all__ = [
    "METHODS",
    "Cluster",
    "Compute",
    "Contention",
    "Event",
    "Method",
    "Prediction",
    "Step",
    "Trace",
    "bucket",
    "simulate",
    "trace",
]
