"""Optimizers by name, parameter groups and gradient clipping.

``build_optimizer`` makes the optimizer that the config section ``optim`` names. SGD, SGDW, LARS,
LAMB and RMSprop warm-up are implemented here; torch's own and other libraries' optimizers are
wrapped. Each file adds its optimizer to the registry in ``largebatch.optim.registry``.
"""

# The order of `largebatch explain` and of error messages is the order of these imports.
from largebatch.optim import (  # noqa: F401
    apex,
    deferred,
    lamb,
    lars,
    muon,
    rmsprop_warmup,
    sgd,
    sgdw,
    torch_optimizers,
)
from largebatch.optim.agc import adaptive_grad_clip_, clipped_parameters
from largebatch.optim.apex import from_apex, to_apex
from largebatch.optim.averages import rate_rule, short_averages
from largebatch.optim.build import build_optimizer, set_step
from largebatch.optim.bundle import Fragment
from largebatch.optim.clip import Clipping, clip_grad_norm_, clip_gradients
from largebatch.optim.config import OptimConfig
from largebatch.optim.deepspeed import shard_for_deepspeed
from largebatch.optim.deferred import DeferredOptimizer
from largebatch.optim.groups import describe_groups, param_groups
from largebatch.optim.imported import try_imported
from largebatch.optim.lamb import LAMB
from largebatch.optim.lars import LARS
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.muon import MuonWithAuxiliary
from largebatch.optim.offload import Offload, layer_rates
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.rmsprop_warmup import RMSpropWarmup, sgd_share
from largebatch.optim.sam import SAM
from largebatch.optim.second_moment import has_second_moment, scale_second_moment
from largebatch.optim.sgd import SGD
from largebatch.optim.sgdw import SGDW

__all__ = [
    "LAMB",
    "LARS",
    "SAM",
    "SGD",
    "SGDW",
    "Clipping",
    "DeferredOptimizer",
    "Fragment",
    "LayerwiseOptimizer",
    "MuonWithAuxiliary",
    "Offload",
    "OptimConfig",
    "OptimizerFacts",
    "RMSpropWarmup",
    "adaptive_grad_clip_",
    "build_optimizer",
    "clip_grad_norm_",
    "clip_gradients",
    "clipped_parameters",
    "describe_groups",
    "from_apex",
    "has_second_moment",
    "layer_rates",
    "optimizers",
    "param_groups",
    "rate_rule",
    "scale_second_moment",
    "set_step",
    "sgd_share",
    "shard_for_deepspeed",
    "short_averages",
    "to_apex",
    "try_imported",
]
