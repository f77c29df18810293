"""Muon for hidden matrices, AdamW for all other parameters, as one optimizer.

Muon (Jordan et al. 2024) orthogonalizes the momentum of a matrix. torch's Muon takes 2-D parameters
only. The authors of Muon leave embeddings, the classifier, biases and norms to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon

from largebatch._errors import UserError
from largebatch.optim.closure import loss_of
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.optimizer import Portable
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.state import begin_state, exactly, has_master


class MuonWithAuxiliary(Portable):
    """torch's Muon and AdamW over one list of groups, with one ``state_dict``.

    Both share the learning rate: Muon's updates are scaled to the root mean square of AdamW's
    ("match_rms_adamw", Liu et al. 2025).

    Args:
        groups: parameter groups; those with ``muon=True`` hold 2-D parameters and go to Muon.
        lr, weight_decay, momentum, nesterov, ns_steps, adjust_lr_fn: see ``torch.optim.Muon``.
        betas, eps: of AdamW.
        master_weights: step float16 and bfloat16 parameters on float32 master copies, with float32
            moments, all kept in the state. Steps start from the master: editing the parameter by
            hand has no effect on later steps.

    Raises:
        UserError: a Muon group holds a parameter that is no matrix, or there is no such group.
    """

    carried = ("_muon", "_adamw")

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        master_weights: bool = True,
    ) -> None:
        matrices = [group for group in groups if group.get("muon")]
        others = [group for group in groups if not group.get("muon")]
        if not matrices:
            raise UserError("muon: no matrix among the parameters; choose another optimizer")
        own = {"lr": lr, "weight_decay": weight_decay, "master_weights": master_weights}
        super().__init__(groups, own)
        self._muon = Muon(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
        # One that has nothing to do is kept for groups that are added; torch makes none without.
        self._adamw = AdamW(
            others or [{"params": [torch.zeros(0)]}],
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
        )
        inner = (self._muon, self._adamw) if others else (self._muon,)
        self.param_groups = [group for each in inner for group in each.param_groups]
        self._share()

    def _share(self) -> None:
        """Let the two optimizers work on this one's groups and state."""
        for inner in (self._muon, self._adamw):
            wanted = inner is self._muon
            inner.param_groups = [g for g in self.param_groups if bool(g.get("muon")) == wanted]
            inner.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to Muon if it says ``muon=True``, else to AdamW."""
        super().add_param_group(param_group)
        if not hasattr(self, "_adamw"):
            return  # the constructor adds groups before the two are there
        added = self.param_groups.pop()
        inner = self._muon if added.get("muon") else self._adamw
        inner.add_param_group(added)
        self.param_groups.append(inner.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("master_weights", self.defaults["master_weights"])
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state bit by bit."""
        with exactly(self, dtypes=self._state_dtypes):
            super().load_state_dict(state_dict)

    def _state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the types of a parameter's state: those of the tensor that is stepped."""
        mastered = has_master(param, group)
        held = torch.float32 if mastered else param.dtype
        wanted = dict.fromkeys(("momentum_buffer", "exp_avg", "exp_avg_sq"), held)
        return {**wanted, "master": torch.float32} if mastered else wanted

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of ``closure``, which may compute it anew."""
        loss = loss_of(closure)
        with self._on_masters():
            for inner in (self._muon, self._adamw):
                if inner.param_groups:
                    inner.step()
        return loss

    @contextmanager
    def _on_masters(self) -> Iterator[None]:
        """Put masters in the place of 16-bit parameters for the length of a step."""
        masters: dict[Tensor, Tensor] = {}
        lists = [group["params"] for group in self.param_groups]
        owned = [(group, param) for group in self.param_groups for param in group["params"]]
        for group, param in owned:
            if not has_master(param, group):
                if param in self.state:
                    begin_state(param, self.state[param], (), group)
            elif param.grad is not None:
                state = self.state.pop(param, {})
                begin_state(param, state, (), group)
                master = masters[param] = state.pop("master")
                master.grad = param.grad.float()
                self.state[master] = state
        for group, params in zip(self.param_groups, lists, strict=True):
            group["params"] = [masters.get(param, param) for param in params]
        try:
            yield
        finally:
            for group, params in zip(self.param_groups, lists, strict=True):
                group["params"] = params
            for param, master in masters.items():
                param.copy_(master)
                master.grad = None
                self.state[param] = {**self.state.pop(master), "master": master}


def split_for_muon(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divide named groups into hidden matrices (for Muon) and the rest (for AdamW).

    Hidden matrices are the 2-D parameters except embeddings (by name) and the last matrix in the
    model's order, which is the classifier. A model's only matrix goes to Muon all the same.
    """
    matrices = [
        (name, param)
        for group in groups
        for name, param in group["params"]
        if param.ndim == 2 and "embed" not in name.lower()
    ]
    hidden = {id(param) for _, param in matrices[:-1] or matrices}
    result = []
    for group in groups:
        for muon in (True, False):
            part = [(n, p) for n, p in group["params"] if (id(p) in hidden) == muon]
            if part:
                name = f"{group['name']} ({'muon' if muon else 'adamw'})"
                result.append({**group, "name": name, "params": part, "muon": muon})
    return result


@optimizers.register(
    "muon",
    "Muon for hidden matrices, AdamW for embeddings, classifier, convolutions, norms and biases",
    "Jordan et al. 2024; Liu et al. 2025",
    OptimizerFacts(
        frozenset(
            {
                *("momentum", "betas", "eps", "momentum_half_life", "beta2_half_life"),
                "decay_timescale",
            }
        ),
        whole_matrices=True,
        scale_free=True,
    ),
)
def build_muon(config: OptimConfig, groups: list[dict[str, Any]]) -> MuonWithAuxiliary:
    """Build :class:`MuonWithAuxiliary` from the config."""
    arguments: dict[str, Any] = {
        "lr": config.lr,
        "momentum": config.momentum,
        "betas": tuple(config.betas),
    }
    if config.eps is not None:
        arguments["eps"] = config.eps
    built: MuonWithAuxiliary = construct(
        MuonWithAuxiliary, config, split_for_muon(groups), arguments
    )
    return built
