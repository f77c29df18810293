"""Other libraries' optimizers: each a step over the same parameters, or the reason for absence."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.optim import LAMB, LARS, SGD, Offload
from largebatch.optim.apex import fused_lamb

TimedCall = Callable[[], object]
DECAY, MOMENTUM, TRUST = 1e-4, 0.9, 0.001


@dataclass(frozen=True)
class Peer:
    """One way to take a step.

    Attributes:
        name: name in the table.
        family: ``sgd``, ``lars``, ``adamw`` or ``lamb``: the optimizers that it is compared with.
        make: builds the step over parameters with gradients. An exception gives the reason why the
            peer does not run.
    """

    name: str
    family: str
    make: Callable[[list[nn.Parameter]], TimedCall]


def _step_of(optimizer: torch.optim.Optimizer) -> TimedCall:
    return optimizer.step


def _timm(kind: str, **arguments: float | bool) -> Callable[[list[nn.Parameter]], TimedCall]:
    def make(params: list[nn.Parameter]) -> TimedCall:
        module = importlib.import_module("timm.optim")
        return _step_of(getattr(module, kind)(params, **arguments))

    return make


def _pytorch_optimizer(kind: str, **arguments: float) -> Callable[[list[nn.Parameter]], TimedCall]:
    def make(params: list[nn.Parameter]) -> TimedCall:
        module = importlib.import_module("pytorch_optimizer")
        return _step_of(getattr(module, kind)(params, **arguments))

    return make


def _compiled_lars(params: list[nn.Parameter]) -> TimedCall:
    """A foreach LARS in the paper's form, as torch.compile fuses it."""
    weights = [param.detach() for param in params]
    buffers = [torch.zeros_like(weight) for weight in weights]

    def step(weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
        w_norms, g_norms = torch._foreach_norm(weights), torch._foreach_norm(grads)
        decayed = torch._foreach_add(grads, weights, alpha=DECAY)
        ratios = [1e-3 * TRUST * w / (g + DECAY * w) for w, g in zip(w_norms, g_norms, strict=True)]
        torch._foreach_mul_(decayed, ratios)
        torch._foreach_mul_(buffers, MOMENTUM)
        torch._foreach_add_(buffers, decayed)
        torch._foreach_sub_(weights, buffers)

    compiled = torch.compile(step)
    grads = [param.grad for param in params if param.grad is not None]
    compiled(weights, grads, buffers)
    return lambda: compiled(weights, grads, buffers)


def _deepspeed_lamb(params: list[nn.Parameter]) -> TimedCall:
    if not torch.cuda.is_available():
        raise RuntimeError("its fused LAMB is a CUDA kernel; no GPU here")
    module = importlib.import_module("deepspeed.ops.lamb")
    return _step_of(module.FusedLamb(params, lr=1e-5))


def _deepspeed_cpu_adam(params: list[nn.Parameter]) -> TimedCall:
    if params[0].is_cuda:
        raise RuntimeError("it steps parameters in host memory alone")
    module = importlib.import_module("deepspeed.ops.adam")
    return _step_of(module.DeepSpeedCPUAdam(params, lr=1e-5, adamw_mode=True))


def _apex_lamb(params: list[nn.Parameter]) -> TimedCall:
    if not torch.cuda.is_available():
        raise RuntimeError("its FusedLAMB is a CUDA kernel; no GPU here")
    return _step_of(fused_lamb()(params, lr=1e-5))  # type: ignore[call-arg]


def _torch_sgd(params: list[nn.Parameter]) -> TimedCall:
    return torch.optim.SGD(params, 1e-3, MOMENTUM, weight_decay=DECAY, fused=True).step


def _torch_adamw(params: list[nn.Parameter]) -> TimedCall:
    return torch.optim.AdamW(params, 1e-5, fused=True).step


PEERS = (
    Peer("torch SGD, fused", "sgd", _torch_sgd),
    Peer("largebatch SGD", "sgd", lambda p: SGD(p, 1e-3, MOMENTUM, weight_decay=DECAY).step),
    Peer("largebatch LARS", "lars", lambda p: LARS(p, 1e-3, MOMENTUM, DECAY).step),
    Peer(
        "timm Lars",
        "lars",
        _timm("Lars", lr=1e-3, momentum=MOMENTUM, weight_decay=DECAY, always_adapt=True),
    ),
    Peer("foreach LARS, compiled", "lars", _compiled_lars),
    Peer(
        "pytorch_optimizer LARS",
        "lars",
        _pytorch_optimizer("LARS", lr=1e-3, momentum=MOMENTUM, weight_decay=DECAY),
    ),
    Peer("torch AdamW, fused", "adamw", _torch_adamw),
    Peer("DeepSpeed CPU-Adam", "adamw", _deepspeed_cpu_adam),
    Peer("largebatch LAMB", "lamb", lambda p: LAMB(p, 1e-5).step),
    Peer("largebatch LAMB, offloaded", "lamb", lambda p: Offload(LAMB(p, 1e-5)).step),
    Peer("largebatch LAMB, nvlamb", "lamb", lambda p: LAMB(p, 1e-5, preset="nvlamb").step),
    Peer("timm Lamb", "lamb", _timm("Lamb", lr=1e-5, weight_decay=0.01)),
    Peer("pytorch_optimizer Lamb", "lamb", _pytorch_optimizer("Lamb", lr=1e-5, weight_decay=0.01)),
    Peer("DeepSpeed FusedLamb", "lamb", _deepspeed_lamb),
    Peer("apex FusedLAMB", "lamb", _apex_lamb),
)
