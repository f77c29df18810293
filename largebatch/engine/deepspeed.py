"""The DeepSpeed engine: ZeRO stages 0, 1 and 2, with our optimizers or DeepSpeed's.

Rajbhandari et al. 2020, "ZeRO". Every rank holds the model. Stage 1 divides the optimizer's state
among the ranks, stage 2 the summed gradients too. Weights are float32. bf16 and fp16 are done by
autocast, as under the other engines.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.engine.config import DistributedConfig, Terms
from largebatch.engine.deepspeed_config import KEY, resolve
from largebatch.engine.engine import Engine
from largebatch.optim import DeferredOptimizer, LayerwiseOptimizer, shard_for_deepspeed
from largebatch.optim.squares import Apart, Squares
from largebatch.processes.environment import World

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
GROWTH, BACKOFF = 2.0, 0.5  # of the loss scale, as in torch.amp.GradScaler


class DeepSpeed(Engine):
    """Drives a ``deepspeed`` engine, which owns gradients, clipping, loss scale and the step.

    Raises:
        UserError: DeepSpeed is absent or refuses the config.
    """

    name = "deepspeed"
    lockstep = True  # stage 2 sums gradients in every pass
    repeats = False  # gradients are the library's, in partitions of its own
    apart: tuple[Apart, ...] = ("first",)

    def __init__(
        self, model: nn.Module, world: World, config: DistributedConfig, terms: Terms
    ) -> None:
        super().__init__(model, world)
        self._config, self._terms = resolve(config, terms), terms
        self.flattens = self._config["zero_optimization"]["stage"] > 0
        if not self.flattens:  # gradients stay whole: we clip them
            self._config["gradient_clipping"] = 0.0
        self._library = _import(next(model.parameters()).device)
        self._engine: Any = None
        self._groups: list[list[nn.Parameter]] = []
        self._scale, self._stable, self._growth_interval = 1.0, 0, 0

    def adopt(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Hand model and optimizer to DeepSpeed, which moves parameters into flat partitions."""
        low = LOW.get(self._terms.compute)
        if low is not None:
            _under_autocast(self.model, low)
        if self.alone and not dist.is_initialized():  # DeepSpeed wants a group, also of one
            backend = "nccl" if next(self.model.parameters()).is_cuda else "gloo"
            store = torch._C._distributed_c10d.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        for param in self.model.parameters():  # DeepSpeed takes no channels_last weights
            param.data = param.data.contiguous()
        os.environ.setdefault("LOCAL_RANK", str(self.world.local_rank))  # DeepSpeed reads it
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        own = isinstance(optimizer, DeferredOptimizer)
        try:
            self._engine, *_ = self._library.initialize(
                model=self.model,
                optimizer=None if own else optimizer,
                model_parameters=optimizer.param_groups if own else None,
                config=self._config,
                dist_init_required=False,
            )
        except (ValueError, AssertionError, RuntimeError, TypeError, ImportError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{KEY}: DeepSpeed refuses: {first[0]}") from error
        self.module = self._engine
        self.optimizer, self.scaler = self._engine.basic_optimizer, scaler
        if any(getattr(param, "use_muon", False) for param in self.model.parameters()):
            self.apart = ()  # DeepSpeed's Muon puts its update in the place of the gradient
        if self.flattens and isinstance(self.optimizer, LayerwiseOptimizer):
            shard_for_deepspeed(self._engine)
        if self.flattens and scaler is not None:
            self._growth_interval = scaler.get_growth_interval()
            self._set_scale(scaler.get_scale())

    def watch_squares(self) -> Squares:
        """Return the squared norms of gradients, of each rank's first pass and of the sum.

        ZeRO 2 sums the gradients of every pass, so those of the first are seen before it does.
        """
        if self.squares is None:
            squares = Squares(self._groups, copies=1 if self.flattens else None)
            squares.apart = "first"
            for param in squares.params:
                param.register_hook(partial(squares.found, param))
            self.squares = squares
        return self.squares

    def begin(self) -> None:
        """Clear the gradients."""
        if self.squares is not None:
            self.squares.begin()
        self._engine.zero_grad()
        self._engine.set_gradient_accumulation_boundary(False)

    def last(self, overlap: bool = True) -> None:
        """Let the coming backward pass sum the gradients."""
        self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor, factor: float) -> None:
        """Add the gradient of ``factor`` x ``loss``; ZeRO multiplies by the loss scale itself."""
        scaled = loss if self.scaler is None or self.flattens else self.scaler.scale(loss)
        self._engine.backward(scaled * factor, scale_wrt_gas=False)

    def finish(self) -> None:
        """Do nothing to gradients: DeepSpeed has summed them in the last backward pass."""
        if self.squares is not None:
            sums = self._pieces() if self.flattens else self.squares.grads()
            self.squares.finish(sums, self.scale_now())

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk the parameters of which this rank holds a piece, each with the piece of its sum."""
        for param in self.model.parameters():
            where = getattr(param, "_hp_mapping", None)
            if where is not None:
                yield param, where.get_lp_grad_fragment(param._index_in_param_group)  # type: ignore[attr-defined]

    def update(
        self, clip: Callable[[], Tensor | None], loss: Tensor | None = None
    ) -> Tensor | None:
        """Take the step; ZeRO clips by itself, and skips a step whose gradients overflow."""
        if not self.flattens:
            return super().update(clip, loss)
        self._engine.step()
        overflow = bool(self._engine.optimizer.overflow)
        self.found_inf = torch.tensor(float(overflow))
        if self.scaler is not None:
            self._follow(overflow)
        if self._terms.clip_norm is None:
            return None
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return torch.clamp(self._terms.clip_norm / (norm + 1e-6), max=1.0)

    @property
    def may_skip(self) -> bool:
        """Whether a step may be skipped: newer ZeRO versions do this in any precision."""
        return self.flattens or super().may_skip

    def loss_scale(self) -> float | None:
        """Return the scale of the loss under fp16."""
        return self._scale if self.flattens and self.scaler is not None else super().loss_scale()

    def scale_now(self) -> Tensor | None:
        """Return the scale of the loss under fp16, 0-d."""
        if self.flattens and self.scaler is not None:
            return torch.tensor(self._scale, dtype=torch.float64)
        return super().scale_now()

    def _set_scale(self, scale: float) -> None:
        self._scale = scale
        self._engine.optimizer.override_loss_scale(scale)

    def _follow(self, overflow: bool) -> None:
        """Change the loss scale after a step by the rule of torch's scaler."""
        self._stable = 0 if overflow else self._stable + 1
        if overflow:
            self._set_scale(self._scale * BACKOFF)
        elif self._stable == self._growth_interval:
            self._stable = 0
            self._set_scale(self._scale * GROWTH)

    # Checkpoints: whole weights and state, numbered as the optimizer was before DeepSpeed.

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Load weights into the model and into the partitions that the optimizer steps."""
        super().load_weights(state)
        names = {id(param): name for name, param in self.model.named_parameters()}
        with torch.no_grad():
            for param, part in self._placed():
                self._divide(param, state[names[id(param)]], part)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer state in the form that it has without DeepSpeed."""
        entries: dict[int, dict[str, Any]] = {}
        for number, (param, part) in enumerate(self._placed()):
            own = self.optimizer.state.get(part, {})
            if own:
                entries[number] = {
                    # Copies: parameters of one partition share what is no piece, such as `step`.
                    key: self._gathered(param, value) if _like(value, part) else deepcopy(value)
                    for key, value in own.items()
                }
        groups = self.optimizer.state_dict()["param_groups"]
        return {"state": entries, "param_groups": self._numbered(groups, self._groups)}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load a whole state, of which each rank keeps its part."""
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != [len(group) for group in self._groups]:
            raise ValueError(f"parameter groups of {sizes} tensors")
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        flat = [group["params"] for group in self.optimizer.param_groups]
        place = {id(p): n for n, p in enumerate(p for group in flat for p in group)}
        entries: dict[int, dict[str, Any]] = {}
        for number, (param, part) in zip(numbers, self._placed(), strict=True):
            mine = entries.setdefault(place[id(part)], {})
            for key, value in state["state"].get(number, {}).items():
                if not isinstance(value, Tensor) or value.shape != param.shape:
                    mine[key] = value
                    continue
                if key not in mine:
                    mine[key] = torch.zeros(part.shape, dtype=value.dtype)
                self._divide(param, value, mine[key])
        self.optimizer.load_state_dict(
            {
                "state": {number: own for number, own in entries.items() if own},
                "param_groups": self._numbered(state["param_groups"], flat),
            }
        )

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the loss scale in the form of torch's scaler."""
        state = super().scaler_state()
        if state is None or not self.flattens:
            return state
        return {**state, "scale": self._scale, "_growth_tracker": self._stable}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Load the loss scale."""
        super().load_scaler_state(state)
        if self.flattens and self.scaler is not None:
            self._set_scale(state["scale"])
            self._stable = state["_growth_tracker"]

    def _placed(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Walk the parameters, each with the tensor that the optimizer steps in its place."""
        for own, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            held = group["params"] * len(own) if self.flattens else group["params"]
            yield from zip(own, held, strict=True)

    def _gathered(self, param: nn.Parameter, part: Tensor) -> Tensor:
        """Return the whole of which ``part`` is a rank's flat piece, in the shape of ``param``."""
        if not self.flattens:
            return part.detach()
        full = torch.zeros(param.numel(), dtype=part.dtype, device=part.device)
        where = param._hp_mapping  # type: ignore[attr-defined]
        if where is not None:
            lp, hp = where.lp_fragment_address, where.hp_fragment_address
            full[lp.start : lp.start + lp.numel] = part.detach()[hp.start : hp.start + hp.numel]
        dist.all_reduce(full)
        return full.view(param.shape)

    def _divide(self, param: nn.Parameter, full: Tensor, part: Tensor) -> None:
        """Put this rank's piece of ``full`` where it belongs in ``part``."""
        part = part.detach()
        if not self.flattens:
            part.copy_(full)
            return
        where = param._hp_mapping  # type: ignore[attr-defined]
        if where is not None:
            lp, hp = where.lp_fragment_address, where.hp_fragment_address
            piece = full.reshape(-1)[lp.start : lp.start + lp.numel]
            part[hp.start : hp.start + hp.numel] = piece.to(part)

    @staticmethod
    def _numbered(groups: list[dict[str, Any]], params: list[list[Any]]) -> list[dict[str, Any]]:
        """Return ``groups`` with parameters numbered through as ``params`` are."""
        numbered, at = [], 0
        for group, own in zip(groups, params, strict=True):
            numbered.append({**group, "params": list(range(at, at + len(own)))})
            at += len(own)
        return numbered


def _like(value: Any, part: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == part.shape


def _under_autocast(model: nn.Module, low: torch.dtype) -> None:
    """Let training passes of ``model`` run under autocast: on GPUs DeepSpeed ends one outside."""
    device, forward = next(model.parameters()).device.type, model.forward

    def cast(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device, low, enabled=model.training):
            return forward(*arguments, **options)

    model.forward = cast


def _import(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"distributed.engine=deepspeed: DeepSpeed is not installed ({error});"
            " pip install 'largebatch[deepspeed]'"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An operator of its inference side, which it would compile on CPU before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
