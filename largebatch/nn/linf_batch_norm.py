"""L-infinity batch norm: scaled by the largest absolute deviation.

Hoffer, Banner, Golan, Soudry, "Norm matters", 2018, section 4.
"""

from __future__ import annotations

from largebatch._ops import NormPolicy
from largebatch.nn.config import NormConfig
from largebatch.nn.over_ghosts import OverGhosts, over_ghosts
from largebatch.nn.registry import NormFacts, norms


class LInfBatchNorm(OverGhosts):
    """Batch norm by the largest absolute deviation times a constant for the number of values.

    With n values the published constant is 0.5 (1 + sqrt(pi ln 4)) / sqrt(2 ln n). For normally
    distributed input the result is 1.4 times the standard deviation, almost independent of n.
    Values that tie for the largest share its gradient. Arguments and behaviour are those of
    ``L1BatchNorm``.
    """

    policy = NormPolicy.TOP_K
    top = 1


@norms.register(
    "linf",
    "batch norm by the largest deviation (L-infinity)",
    "Hoffer et al. 2018",
    NormFacts(ghosts=True, spans="asked"),
)
def _linf(num_features: int, config: NormConfig) -> LInfBatchNorm:
    return LInfBatchNorm(num_features, **over_ghosts(config))
