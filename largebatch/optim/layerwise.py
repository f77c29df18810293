"""The base of LARS and LAMB: one call for all groups, master weights, norms for telemetry."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch._ops.layerwise import Stage
from largebatch.optim.bundle import Bundle, Fragment, Fragments, cut, ranks_of
from largebatch.optim.flat import warn_of_flat
from largebatch.optim.loss_scaling import ScaledStep
from largebatch.optim.optimizer import Optimizer
from largebatch.optim.parameters import any_sharded, check_dense, check_types, tell_autograd
from largebatch.optim.settings import number, plain
from largebatch.optim.state import Fit, check_state_dtype, wanted_dtypes

EXCLUDE = ("none", "one_dimensional", "no_decay")

# What may differ between the groups of one call: rates, and what decay and adaptation come from.
RULES = ("weight_decay", "layer_adaptation", "exclude", "decay_excluded", "split")
APART = {*RULES, "lr", "max_grad_norm", "differentiable"}


class LayerwiseOptimizer(ScaledStep, Optimizer):
    """Base of the optimizers that scale each tensor's rate by a trust ratio of norms.

    Groups may differ in rate, weight decay and adaptation and still be stepped by one operator
    call. A group may set, beside the optimizer's own settings:

    - ``layer_adaptation``: True or False: whether tensors have a trust ratio; None (the default):
      ``exclude`` decides.
    - ``split``: number of equal pieces along the first dimension, each with its own ratio (3 for a
      fused QKV matrix), or ``"rows"`` for one ratio per row.

    Attributes:
        fragments: the layout of each flat parameter, as given to :meth:`shard`.
    """

    carried = (*ScaledStep.carried, "fragments")
    operator = ""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._bundles: dict[tuple[Any, ...], Bundle] = {}
        self._given: set[int] = set()
        self.fragments: dict[Tensor, Fragments] = {}
        super().__init__(params, {**defaults, "layer_adaptation": None, "split": 1})
        self.unscales = defaults["fused"] is True

    # What an optimizer of this kind adds.

    @abstractmethod
    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range with a UserError."""

    @abstractmethod
    def moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the moments that a group keeps."""

    @abstractmethod
    def call(
        self,
        bundle: Bundle,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        masters: list[Tensor],
        scalars: dict[str, Any],
        stage: Stage,
    ) -> None:
        """Call the operator on one bundle."""

    # torch's interface.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check the group's hyperparameters and parameters, then add the group as torch does."""
        super().add_param_group(param_group)
        self._given.update(map(id, self.param_groups[-1]["params"]))
        self._bundles.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bundles = {}
        if "defaults" in state:  # a copy of the whole optimizer; loaded state keeps the parameters
            self._given = {id(param) for group in self.param_groups for param in group["params"]}

    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the type of each entry of a parameter's state."""
        return wanted_dtypes(param, group, self.moments)

    def shard(
        self, param: Tensor, parts: Iterable[Fragment], tensors: int, group: Any = None
    ) -> None:
        """Give the layout of a flat parameter: the stretches of the model's tensors in it.

        DeepSpeed's ZeRO and other partitioners lay tensors out so, with parts of a tensor on other
        ranks. Norms are then exactly those of the model's tensors. The ranks of ``group`` sum two
        numbers per tensor in one message a step, so all of them must step alike. Sharded DTensors
        (FSDP2) need no such call.

        Args:
            param: a one-dimensional parameter of this optimizer.
            parts: the fragments on this rank; elements outside of all fragments are left alone.
            tensors: number of tensors that the ranks of ``group`` hold together.
            group: ranks that hold parts of the same tensors; None for all ranks.

        Raises:
            UserError: a fragment reaches out of ``param``, or its number is not below ``tensors``.
        """
        parts = tuple(parts)
        for part in parts:
            if not 0 <= part.start <= part.start + part.length <= param.numel():
                raise UserError(f"{part}: not within the {param.numel()} elements of its parameter")
            if not 0 <= part.tensor < tensors:
                raise UserError(f"{part}: a tensor from 0 up and below {tensors}")
        self.fragments[param] = Fragments(parts, tensors, group)
        self._bundles.clear()

    def take(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step along ``factor`` x gradient; none where ``found_inf`` is not 0."""
        for bundle in self._current():
            self._step_bundle(bundle, factor, found_inf)

    def layer_norms(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield the norms of the last step: (parameter, number of its piece, norms).

        ``norms`` is a float64 tensor (3,) on the device, read without a synchronisation. It holds
        the norm of the weights, the norm of the gradient (LAMB: of the update) and the trust ratio.
        Tensors that do not adapt have the ratio 1.
        """
        for bundle in self._bundles.values():
            norms = torch.cat((bundle.norms[:, :2].sqrt(), bundle.norms[:, 2:]), dim=1)
            for piece, row in zip(bundle.pieces, norms, strict=True):
                yield bundle.params[piece.param], piece.number, row

    # How a step is made.

    def _current(self) -> list[Bundle]:
        """Return this step's bundles, with rates and decays as the groups have them now."""
        plan: dict[tuple[Any, ...], list[tuple[dict[str, Any], list[Tensor]]]] = {}
        settings: dict[tuple[Any, ...], dict[str, Any]] = {}
        for group in self.param_groups:
            present = [param for param in group["params"] if param.grad is not None]
            common = {key: plain(group[key]) for key in self.defaults if key not in APART}
            lr = id(group["lr"]) if isinstance(group["lr"], Tensor) else None
            for place, part in self._by_place(present):
                same = (*place, lr, *common.values())
                plan.setdefault(same, []).append((group, part))
                settings[same] = common
        for same, groups in plan.items():
            bundle = self._bundles.get(same)
            if bundle is None or not bundle.holds(groups):
                bundle = self._bundles[same] = self._make_bundle(groups, settings[same])
            self._refresh(bundle)
        for old in set(self._bundles) - set(plan):
            del self._bundles[old]
        return list(self._bundles.values())

    def _by_place(self, params: list[Tensor]) -> list[tuple[tuple[Any, ...], list[Tensor]]]:
        """Divide parameters by device, and by the ranks that hold parts of the same tensors."""
        devices = {param.device: None for param in params}
        if len(devices) == 1 and not self.fragments and not any_sharded(params):
            return [((*devices, ()), params)]
        places: dict[tuple[Any, ...], list[Tensor]] = {}
        for device in devices:
            for param in params:
                if param.device == device:
                    ranks = ranks_of(param, self.fragments)
                    places.setdefault((device, ranks), []).append(param)
        return list(places.items())

    def _refresh(self, bundle: Bundle) -> None:
        """Write rates, and where the groups' rules have changed decays and adaptations.

        The table is read while the kernel is launched: nothing waits for the device.
        """
        rules = [tuple(plain(group[key]) for key in RULES) for group, _ in bundle.groups]
        if rules != bundle.rules:
            bundle.rules = rules
            owner = [group for group, params in bundle.groups for _ in params]
            rows = [(0.0, *self.treatment(owner[p.param], p.ndim)) for p in bundle.pieces]
            bundle.settings = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
            bundle.rates = []
        rates = [
            (1.0 if isinstance(group["lr"], Tensor) else number(group["lr"]), len(params))
            for group, params in bundle.groups
        ]
        if rates == bundle.rates:
            return
        bundle.rates = rates
        if len({rate for rate, _ in rates}) == 1:
            bundle.settings[:, 0] = rates[0][0]
        else:
            of_param = [rate for rate, count in rates for _ in range(count)]
            of_piece = [of_param[piece.param] for piece in bundle.pieces]
            bundle.settings[:, 0] = torch.tensor(of_piece, dtype=torch.float64)

    def _make_bundle(
        self, groups: list[tuple[dict[str, Any], list[Tensor]]], common: dict[str, Any]
    ) -> Bundle:
        params = [param for _, part in groups for param in part]
        pieces, tensors = cut(groups, self.fragments)
        warn_of_flat(type(self).__name__, groups, self._given, self.fragments)
        device = params[0].device
        norms = torch.zeros((len(pieces), 3), dtype=torch.float64, device=device)
        absent = torch.empty(0, device=device)
        ranks = ranks_of(params[0], self.fragments)
        rows = torch.tensor([p.tensor for p in pieces], dtype=torch.int64, device=device)
        table, fit = torch.empty(0), Fit()
        return Bundle(
            groups, common, params, pieces, ranks, tensors, rows, table, norms, absent, fit
        )

    def treatment(self, group: dict[str, Any], ndim: int) -> tuple[float, bool]:
        """Return the weight decay of a tensor and whether it adapts, by the group's rules."""
        decay = number(group["weight_decay"])
        if group["layer_adaptation"] is not None:
            excluded = not group["layer_adaptation"]
        else:
            excluded = (group["exclude"] == "one_dimensional" and ndim <= 1) or (
                group["exclude"] == "no_decay" and decay == 0.0
            )
        if excluded and not group["decay_excluded"]:
            decay = 0.0
        return decay, not excluded

    def excluded(self, groups: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """Return the parameters without a trust ratio.

        Args:
            groups: the parameters of each group, where flat partitions are stepped in their place;
                None: those of ``param_groups``.
        """
        held = groups or [group["params"] for group in self.param_groups]
        return [
            param
            for group, params in zip(self.param_groups, held, strict=True)
            for param in params
            if not self.treatment(group, param.ndim)[1]
        ]

    def _step_bundle(self, bundle: Bundle, factor: Tensor | None, found_inf: Tensor | None) -> None:
        grads = [cast(Tensor, param.grad) for param in bundle.params]
        check_dense(type(self).__name__, grads)
        names = self.moment_names(bundle.common)
        states = bundle.fit.states(self.state, bundle.params, names, bundle.common)
        moments = [bundle.parts([state[name] for state in states]) for name in names]
        masters: list[Tensor] = []
        if bundle.fit.mastered:
            masters = bundle.parts([state.get("master", bundle.absent) for state in states])
        device = bundle.norms.device
        lr = bundle.groups[0][0]["lr"]
        scalars = {
            "lr_factor": _on(device, lr) if isinstance(lr, Tensor) else None,
            "grad_factor": None if factor is None else factor.to(device),
            "found_inf": None if found_inf is None else found_inf.to(device),
        }
        lists = (bundle.parts(bundle.params), bundle.parts(grads), moments, masters)
        if not bundle.ranks:
            self.call(bundle, *lists, scalars, "all")
        else:
            self.call(bundle, *lists, scalars, "sums")
            bundle.add_up()
            self.call(bundle, *lists, scalars, "update")
        tell_autograd(bundle.params)

    def check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range, and parameters that cannot be stepped."""
        name = type(self).__name__
        for key in ("lr", "weight_decay"):
            if not 0.0 <= number(group[key]) < math.inf:
                raise UserError(f"{name}: {key}={group[key]}: a number from 0 up")
        if group["exclude"] not in EXCLUDE:
            raise UserError(f"{name}: exclude={group['exclude']!r}: {', '.join(EXCLUDE)}")
        check_state_dtype(name, group)
        split = plain(group["split"])
        if split != "rows" and not (isinstance(split, int) and split >= 1):
            raise UserError(f"{name}: split={split!r}: a number from 1 up, or 'rows'")
        self.check_group(group)
        check_types(name, group["params"])
        for param in group["params"]:
            if isinstance(split, int) and split > 1 and (param.ndim == 0 or len(param) % split):
                raise UserError(
                    f"{name}: split={split}: a parameter of shape {tuple(param.shape)} does not "
                    "divide so along its first dimension"
                )
            if group["fused"] and not _ops.is_compiled(self.operator, param.device):
                device = param.device.type
                faces = _ops.backends()[self.operator]
                raise RuntimeError(
                    f"{name}: fused=True, but the compiled op is absent on {device}: "
                    f"{faces.get(device, 'no kernel for this device')}"
                )


def _on(device: torch.device, lr: Tensor) -> Tensor:
    dtype = lr.dtype if lr.dtype in (torch.float32, torch.float64) else torch.float32
    return lr.detach().to(device, dtype)
