"""L1 batch norm: scaled by the mean absolute deviation, safe where squares overflow.

Hoffer, Banner, Golan, Soudry, "Norm matters: efficient and accurate normalization schemes in deep
networks", 2018, section 4.
"""

from __future__ import annotations

from largebatch._ops import NormPolicy
from largebatch.nn.config import NormConfig
from largebatch.nn.over_ghosts import OverGhosts, over_ghosts
from largebatch.nn.registry import NormFacts, norms


class L1BatchNorm(OverGhosts):
    """Batch norm by sqrt(pi/2) times the mean absolute deviation.

    For normally distributed input this estimates the standard deviation without bias. Arguments and
    behaviour are those of ``GhostBatchNorm`` with three differences. ``ghost_size`` may be None
    (all samples of a forward). ``process_group`` (or ``"all"``) names the ranks that hold a ghost
    together, as in ``SyncBatchNorm``. ``eps`` is added to the deviation, not to the variance.
    Unlike the paper's code, ``momentum`` is the weight of the new statistics, and ``running_var``
    holds squared deviations, as torch's does.
    """

    policy = NormPolicy.L1


@norms.register(
    "l1",
    "batch norm by the mean absolute deviation (L1)",
    "Hoffer et al. 2018",
    NormFacts(ghosts=True, spans="asked"),
)
def _l1(num_features: int, config: NormConfig) -> L1BatchNorm:
    return L1BatchNorm(num_features, **over_ghosts(config))
