"""Simulate a training step on a cluster; the command ``largebatch plan`` uses this package.

The work of a step is traced from the model itself. Devices, links and all-reduce algorithms are
described by published or measured constants.
"""

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
