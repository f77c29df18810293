"""How ranks sum their gradients: topology of hosts, torus all-reduce, DDP hooks and a cost model.

A torus all-reduce arranges the ranks in a grid, with rows inside hosts and columns across hosts.
Importing this package registers the back end ``torus`` with torch.distributed.
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
