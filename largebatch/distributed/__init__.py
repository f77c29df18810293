"""How the ranks of a run add up their gradients: topology, the torus, hooks and the cost model.

Importing this registers back end ``torus`` with torch.distributed.
"""

from largebatch.distributed.backend import register
from largebatch.distributed.cost_model import CostModel
from largebatch.distributed.hook import torus_all_reduce, torus_hook
from largebatch.distributed.statistics import stats
from largebatch.distributed.topology import Topology
from largebatch.processes.environment import World, detect

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
