"""The step simulator behind ``largebatch plan``."""

from largebatch.simulate.cluster import Cluster, Prediction
from largebatch.simulate.methods import METHODS, Method
from largebatch.simulate.step import Compute, Contention, Event, SimulatedStep, bucket, simulate
from largebatch.simulate.trace import Trace, trace

__all__ = [
    "METHODS",
    "Cluster",
    "Compute",
    "Contention",
    "Event",
    "Method",
    "Prediction",
    "SimulatedStep",
    "Trace",
    "bucket",
    "simulate",
    "trace",
]
