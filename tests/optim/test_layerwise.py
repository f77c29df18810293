"""LARS and LAMB against float64: golden vectors, presets, precisions, random tensor sets."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, clip_gradients, param_groups
from largebatch.optim.lamb import PRESETS as LAMB_PRESETS
from largebatch.optim.lars import PRESETS as LARS_PRESETS

compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
FACES = [pytest.param(True, marks=compiled), False]
KINDS = {"lars": LARS, "lamb": LAMB}


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def take(
    optimizer: torch.optim.Optimizer, param: Tensor, *steps: tuple[float, tuple[float, ...]]
) -> list[float]:
    """Take steps of (rate, gradient) and return the parameter."""
    for lr, grad in steps:
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.tensor(grad, dtype=param.dtype)
        optimizer.step()
    return param.tolist()


# --- Golden vectors ------------------------------------------------------------------------------

TWO = ((10.0, (0.6, 0.8)), (5.0, (-0.3, 0.4)))
LARS_GOLDEN = [
    ({}, 0.01, TWO[1:], (3.02454545, 3.96)),
    ({"denominator": "joint"}, 0.01, TWO[1:], (3.02615081, 3.95738386)),
    ({}, 1e-4, TWO, (2.95782063, 3.9042)),
    ({"preset": "mlperf", "exclude": "none"}, 1e-4, TWO, (2.95782063, 3.9042)),
    ({"preset": "timm", "eps": 0.0}, 1e-4, TWO, (2.97132063, 3.9222)),
    (
        {"lr_inside_momentum": False, "ratio_inside_momentum": False},
        1e-4,
        TWO,
        (2.95810371, 3.90457745),
    ),
]


@pytest.mark.parametrize("fused", FACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("switches", "decay", "steps", "expected"), LARS_GOLDEN)
def test_lars_golden(fused, dtype, switches, decay, steps, expected):
    param = parameter(3.0, 4.0, dtype=dtype)
    optimizer = LARS([param], 1.0, weight_decay=decay, fused=fused, **switches)
    steps = [(10.0 if len(steps) == 1 else lr, grad) for lr, grad in steps]
    found = take(optimizer, param, *steps)
    assert found == pytest.approx(expected, abs=1e-8 if dtype == torch.float64 else 5e-7)


LAMB_GOLDEN = [
    ("moments", 1, (2.96481588, 3.96447427)),
    ("moments", 2, (2.95039252, 3.91711727)),
    ("none", 1, (2.96470023, 3.96458918)),
    ("none", 2, (2.95089917, 3.91704686)),
]


@pytest.mark.parametrize("fused", FACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("correction", "steps", "expected"), LAMB_GOLDEN)
def test_lamb_golden(fused, dtype, correction, steps, expected):
    param = parameter(3.0, 4.0, dtype=dtype)
    optimizer = LAMB([param], 0.01, weight_decay=0.01, bias_correction=correction, fused=fused)
    grads = ((0.01, (0.6, 0.8)), (0.01, (-0.3, 0.4)))[:steps]
    found = take(optimizer, param, *grads)
    assert found == pytest.approx(expected, abs=1e-8 if dtype == torch.float64 else 5e-7)


# --- The optimizers ------------------------------------------------------------------------------


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(*layers).to(dtype).to(memory_format=torch.channels_last)


def some_grads(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = grad.to(memory_format=torch.channels_last) if grad.ndim == 4 else grad


@pytest.mark.parametrize("preset", LARS_PRESETS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_every_lars_preset_is_its_formula(preset, nesterov):
    """100 steps against each preset's published formula, written out in plain float64."""
    model = net(torch.float64)
    plain = copy.deepcopy(model)
    lr, m, wd = 2.0, 0.9, 0.01
    optimizer = LARS(model.parameters(), lr, m, wd, preset=preset, nesterov=nesterov)
    c = 0.02 if preset == "larc" else 0.001
    buffers = [torch.zeros_like(p) for p in plain.parameters()]
    for step in range(100):
        some_grads(model, step)
        some_grads(plain, step)
        optimizer.step()
        with torch.no_grad():
            for p, v in zip(plain.parameters(), buffers, strict=True):
                g, w_norm, g_norm, decay = p.grad, p.norm(), p.grad.norm(), wd
                skipped = preset == "mlperf" and p.ndim <= 1
                if skipped:
                    decay = 0.0
                eps = 1e-8 if preset in ("timm", "larc") else 0.0
                if preset == "optax":
                    ratio = c * w_norm / (g + decay * p).norm()
                else:
                    ratio = c * w_norm / (g_norm + decay * w_norm + eps)
                if w_norm == 0 or skipped:
                    ratio = torch.ones(())
                elif preset == "larc":
                    ratio = min(ratio / lr, torch.ones(()))
                d = ratio * (g + decay * p)
                if preset in ("timm", "larc"):  # torch's SGD on the scaled gradient
                    v.mul_(m).add_(d)
                    p.sub_(lr * (d + m * v if nesterov else v))
                else:
                    v.mul_(m).add_(lr * d)
                    p.sub_(lr * d + m * v if nesterov else v)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("preset", LAMB_PRESETS)
def test_every_lamb_preset_is_its_formula(preset):
    model = net(torch.float64)
    plain = copy.deepcopy(model)
    lr, b1, b2, wd = 0.01, 0.9, 0.999, 0.1
    optimizer = LAMB(model.parameters(), lr, (b1, b2), wd, preset=preset)
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in plain.parameters()]
    for step in range(1, 101):
        some_grads(model, step)
        some_grads(plain, step)
        optimizer.step()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        clip = max(1.0, float(norm)) if preset in ("nvlamb", "author") else 1.0
        with torch.no_grad():
            for p, (m, v) in zip(plain.parameters(), state, strict=True):
                g = p.grad / clip
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g * g)
                c1, c2, rate = 1 - b1**step, 1 - b2**step, lr
                if preset == "deepspeed":
                    rate, c1, c2 = lr * math.sqrt(c2) / c1, 1.0, 1.0
                if preset == "author":
                    c1 = c2 = 1.0
                eps = 1e-8 if preset == "deepspeed" else 1e-6
                u = (m / c1) / ((v / c2).sqrt() + eps) + wd * p
                ratio = float(p.norm() / u.norm()) if p.norm() > 0 and u.norm() > 0 else 1.0
                if preset == "deepspeed" and p.norm() > 0:
                    ratio = min(max(ratio, 0.01), 10.0)
                p.sub_(rate * ratio * u)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_with_ratio_one_lars_is_sgd_and_lamb_is_adamw():
    ours, theirs = net(torch.float64), net(torch.float64)
    a = LARS(param_groups(ours, 0.01, True, False)[0:], 0.1, weight_decay=0.01, preset="timm")
    for group in a.param_groups:
        group["layer_adaptation"] = False
        group["decay_excluded"] = True
    b = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for step in range(100):
        some_grads(ours, step)
        some_grads(theirs, step)
        a.step()
        b.step()
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)
    ours, theirs = net(torch.float64), net(torch.float64)
    lamb = LAMB(ours.parameters(), 0.01, weight_decay=0.1, eps=1e-8)
    for group in lamb.param_groups:
        group["layer_adaptation"] = False
    adamw = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1)
    for step in range(100):
        some_grads(ours, step)
        some_grads(theirs, step)
        lamb.step()
        adamw.step()
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["Lars", "Lamb"])
def test_agrees_with_timms_over_100_steps(name):
    timm = pytest.importorskip("timm.optim")
    models = net(torch.float64), net(torch.float64)
    ours, theirs = (param_groups(model, 0.01) for model in models)
    for group in theirs:
        group["params"] = [param for _, param in group["params"]]
    if name == "Lars":
        optimizers = LARS(ours, 0.5, preset="timm"), timm.Lars(theirs, 0.5, momentum=0.9)
    else:  # which clips by 1 and, like its Lars, adapts groups that decay
        lamb = LAMB(ours, 0.01, preset="nvlamb", exclude="no_decay")
        optimizers = lamb, timm.Lamb(theirs, 0.01)
    for step in range(100):
        for model, optimizer in zip(models, optimizers, strict=True):
            some_grads(model, step)
            optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS.values())
def test_clipping_hands_over_a_factor_and_writes_no_gradient(kind):
    model, scaled = net(), net()
    a, b = kind(model.parameters(), 0.1), kind(scaled.parameters(), 0.1)
    some_grads(model, 0)
    some_grads(scaled, 0)
    before = [p.grad.clone() for p in model.parameters()]
    clip_gradients(a, 0.5)
    torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.5)
    a.step()
    b.step()
    assert all(torch.equal(g, p.grad) for g, p in zip(before, model.parameters(), strict=True))
    for x, y in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS.values())
def test_torchs_interface(kind):
    model = net()
    optimizer = kind(model[:3].parameters(), 0.1)
    optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 0.05})
    some_grads(model, 0)
    model[4].bias.grad = None  # a missing gradient is passed over
    bias = model[4].bias.detach().clone()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert torch.equal(bias, model[4].bias)
    assert model[4].bias not in optimizer.state
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.005])
    rows = list(optimizer.layer_norms())
    assert len(rows) == 5
    for param, number, norms in rows:
        assert number == 0
        if kind is LARS:
            assert float(norms[1]) == pytest.approx(float(param.grad.norm()), rel=1e-6)
    optimizer.zero_grad(set_to_none=False)
    assert all(float(p.grad.abs().sum()) == 0 for p in model[:3].parameters())


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_rate_on_the_device_is_the_same_rate(kind):
    plain, capturable = net(), net()
    a = kind(plain.parameters(), 0.1)
    b = kind(capturable.parameters(), torch.tensor(0.1, dtype=torch.float64))
    for step in range(3):
        some_grads(plain, step)
        some_grads(capturable, step)
        a.step()
        b.step()
    for x, y in zip(plain.parameters(), capturable.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("split", [3, "rows"])
def test_pieces_of_a_tensor_have_ratios_of_their_own(kind, split):
    torch.manual_seed(1)
    fused = nn.Parameter(torch.randn(6, 4) * torch.arange(1.0, 7.0)[:, None])
    pieces = [nn.Parameter(p.clone()) for p in fused.detach().tensor_split(3 if split == 3 else 6)]
    a = kind([{"params": [fused], "split": split}], 0.1, weight_decay=0.01)
    b = kind(pieces, 0.1, weight_decay=0.01)
    for _ in range(3):
        fused.grad = torch.sin(fused.detach())
        for piece in pieces:
            piece.grad = torch.sin(piece.detach())
        a.step()
        b.step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in pieces]))
    if kind is LAMB:
        assert float(a.state[fused]["step"]) == 3


@pytest.mark.parametrize("fused", FACES)
def test_groups_with_rates_of_their_own_are_exact_in_one_call(fused):
    params = [parameter(3.0, 4.0), parameter(3.0, 4.0)]
    groups = [{"params": [params[0]], "lr": 10.0}, {"params": [params[1]], "lr": 0.1}]
    optimizer = LARS(groups, 1.0, weight_decay=0.01, fused=fused)
    alone = parameter(3.0, 4.0)
    for param in (*params, alone):
        param.grad = torch.tensor([-0.3, 0.4], dtype=torch.float64)
    optimizer.step()
    LARS([alone], 0.1, weight_decay=0.01, fused=fused).step()
    assert params[0].tolist() == pytest.approx((3.02454545, 3.96), abs=1e-8)
    assert torch.equal(params[1], alone)


def test_momentum_may_begin_later_without_touching_the_master():
    param = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = LARS([param], 0.1, momentum=0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    master = optimizer.state[param]["master"].clone()
    assert float(master[0]) < 1.0 and float(param.detach()[0]) == 1.0
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    step = float(master[0] - optimizer.state[param]["master"][0])
    assert step == pytest.approx(1.0 - float(master[0]), rel=0.01)


def test_an_exact_norm_at_the_ends_of_float32():
    for scale in (1e-22, 1e-18, 1e18, 1e25):
        param = nn.Parameter(torch.full((5000,), scale))
        optimizer = LARS([param], 1.0, momentum=0.0)
        param.grad = torch.ones_like(param)
        optimizer.step()
        _, _, norms = next(optimizer.layer_norms())
        assert float(norms[0]) == pytest.approx(scale * math.sqrt(5000), rel=1e-6)


def test_excluded_tensors_are_listed_and_decay_as_asked():
    model = net()
    mlperf = LARS(model.parameters(), 0.1, weight_decay=0.1, preset="mlperf")
    assert [p.ndim for p in mlperf.excluded()] == [1, 1, 1, 1]
    for decays in (False, True):
        param = nn.Parameter(torch.ones(3))
        optimizer = LARS([param], 0.5, 0.0, 0.1, exclude="one_dimensional", decay_excluded=decays)
        param.grad = torch.zeros(3)
        optimizer.step()
        assert float(param.detach()[0]) == pytest.approx(0.95 if decays else 1.0)
    groups = param_groups(model, 0.1, adapt_norm_and_bias=False)
    timm = LARS(groups, 0.1, preset="paper")
    assert {p.ndim for p in timm.excluded()} == {1}


BAD = [
    (LARS, {"preset": "papr"}, "preset='papr'"),
    (LARS, {"momentum": 1.0}, "momentum=1.0"),
    (LARS, {"denominator": "max"}, "denominator='max'"),
    (LARS, {"zero_norm": "one"}, "zero_norm='one'"),
    (LARS, {"nesterov": True, "momentum": 0.0}, "nesterov"),
    (LARS, {"exclude": "all"}, "exclude='all'"),
    (LARS, {"state_dtype": torch.float16}, "state_dtype"),
    (LARS, {"weight_decay": -1.0}, "weight_decay=-1.0"),
    (LAMB, {"betas": (0.9, 1.0)}, "betas"),
    (LAMB, {"eps": -1.0}, "eps"),
    (LAMB, {"min_ratio": 2.0, "max_ratio": 1.0}, "min_ratio"),
    (LAMB, {"bias_correction": "both"}, "bias_correction"),
    (LAMB, {"max_grad_norm": -1.0}, "max_grad_norm"),
]


@pytest.mark.parametrize(("kind", "switches", "said"), BAD)
def test_bad_hyperparameters_are_refused_by_name(kind, switches, said):
    with pytest.raises(UserError, match=said):
        kind([nn.Parameter(torch.ones(3))], lr=0.1, **switches)


@pytest.mark.parametrize("kind", KINDS.values())
def test_complex_and_sparse_are_refused(kind):
    with pytest.raises(UserError, match="complex64"):
        kind([nn.Parameter(torch.ones(3, dtype=torch.complex64))], 0.1)
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse"):
        kind(embedding.parameters(), 0.1).step()
    with pytest.raises(UserError, match="split=3"):
        kind([{"params": [nn.Parameter(torch.ones(4, 2))], "split": 3}], 0.1)
