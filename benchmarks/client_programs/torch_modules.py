"""torch's own inputs of batch norms (ModuleInfo), run through each of our norms.

Constructor arguments and inputs are those of the installed torch's test library for BatchNorm1d, 2d
and 3d, the empty batch and ``bias=False`` among them; each check states one of the tests of its
test_modules.py, which no wheel holds, in words of our own.
"""

from __future__ import annotations

import copy
import io
import sys
import warnings
from functools import partial
from typing import Any

import torch
from outcomes import Outcomes
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_modules import module_db

from largebatch.nn import (
    GhostBatchNorm,
    L1BatchNorm,
    LInfBatchNorm,
    SyncBatchNorm,
    TopKBatchNorm,
)

NORMS = {
    "ghost of 2": partial(GhostBatchNorm, ghost_size=2),
    "ghost of all": partial(GhostBatchNorm, ghost_size=10**6),
    "ghost with ReLU": partial(GhostBatchNorm, ghost_size=2, activation="relu"),
    "sync": SyncBatchNorm,
    "L1": partial(L1BatchNorm, ghost_size=2),
    "L-infinity": partial(LInfBatchNorm, ghost_size=2),
    "top-k": partial(TopKBatchNorm, ghost_size=2, k=3),
}
ARGUMENTS = ("num_features", "eps", "momentum", "affine", "track_running_stats")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def as_function(module: nn.Module) -> Any:
    """Return the module as a function of its input and of all its parameters."""
    names = [name for name, _ in module.named_parameters()]
    return lambda x, *p: torch.func.functional_call(module, dict(zip(names, p, strict=True)), (x,))


def check_forward(module, x):
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype


def check_gradient(module, x):
    module.double()
    x = x.double().requires_grad_()
    assert gradcheck(lambda z, *_: module(z), (x, *module.parameters()), check_batched_grad=False)


def check_forward_mode(module, x):
    module.double()
    x = x.double().requires_grad_()
    options = dict.fromkeys(
        ("check_backward_ad", "check_undefined_grad", "check_batched_grad"), False
    )
    inputs = (x, *module.parameters())
    assert gradcheck(as_function(module), inputs, check_forward_ad=True, **options)


def check_second_gradient(module, x):
    if x.numel() > 200:
        return
    module.double()
    assert gradgradcheck(
        lambda z, *_: module(z), (x.double().requires_grad_(), *module.parameters())
    )


def check_function_transforms(module, x):
    module.double()
    if module.training:
        torch.func.replace_all_batch_norm_modules_(module)
    x = x.double()
    weights = torch.randn_like(x)
    found = torch.func.grad(lambda z: (module(z) * weights).sum())(x)
    z = x.clone().requires_grad_()
    (module(z) * weights).sum().backward()
    torch.testing.assert_close(found, z.grad)


def check_memory_format(module, x):
    layout = LAYOUTS.get(x.dim())
    if layout is None:
        return
    expected = copy.deepcopy(module)(x)
    found = module(x.to(memory_format=layout))
    torch.testing.assert_close(found, expected)
    assert not x.numel() or found.is_contiguous(memory_format=layout)


def check_gaps_in_memory(module, x):
    gapped = torch.stack((x, x), -1)[..., 0]
    torch.testing.assert_close(copy.deepcopy(module)(gapped), module(x))


def check_state_dict(module, x):
    module(x)
    other = copy.deepcopy(module)
    other.reset_parameters()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


def check_pickle(module, x):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)  # written three lines above
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


def check_without_gradients(module, x):
    expected = copy.deepcopy(module)(x)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def check_to_empty(module, x):
    module = module.to("meta").to_empty(device="cpu")
    module.reset_parameters()
    module(x)


def check_repr(module, x):
    assert repr(module)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def every_input(norm, check):
    """Run a check with all of torch's inputs, in training and evaluation."""
    count, wrong = 0, []
    for info in module_db:
        if info.module_cls not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            continue
        for training in (True, False):
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
            )
            for each in inputs:
                count += 1
                x = each.forward_input.args[0].detach().clone()
                if x.numel() > 200 and x.dim() > 3:  # finite differences of every element
                    x = x[:, :, :2].contiguous()
                torch.manual_seed(0)
                try:
                    given = each.constructor_input
                    named = dict(zip(ARGUMENTS, given.args, strict=False))
                    module = norm(**named, **given.kwargs)
                    check(module.train(training), x)
                except Exception as error:
                    case = f"{info.module_cls.__name__} {each.desc} training={training}"
                    wrong.append(f"{case}: {type(error).__name__}: {error}")
    assert not wrong, f"{len(wrong)} of {count} inputs; {wrong[0]}"


def main() -> None:
    warnings.simplefilter("ignore")
    outcomes = Outcomes(sys.argv[1])
    for name, norm in NORMS.items():
        for check in CHECKS:
            title = check.__name__.removeprefix("check_").replace("_", " ")
            outcomes.check(f"{name}: {title}", partial(every_input, norm, check))


if __name__ == "__main__":
    main()
