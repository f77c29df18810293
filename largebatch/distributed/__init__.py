"""The ranks of a run: who they are, how they start and end, and how they add up gradients.

Importing this registers back end ``torus`` with torch.distributed.
"""

from largebatch.distributed.backend import register
from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.environment import World, detect
from largebatch.distributed.hook import torus_all_reduce, torus_hook
from largebatch.distributed.statistics import stats
from largebatch.distributed.topology import Topology

__all__ = [
    "CostModel",
    "Topology",
    "World",
    "detect",
    "register",
    "stats",
    "torus_all_reduce",
    "torus_hook",
]

register()
