"""SGD: equal to torch's where torch has the form, and the identities between forms elsewhere."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim import SGD, clip_gradients

SHAPES = ((7, 5), (5,), (4, 3, 2, 2), (40, 30))


def random_params(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in SHAPES
    ]


def set_grads(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(
            param.dtype
        )


def run(
    make: Any,
    steps: int = 100,
    dtype: torch.dtype = torch.float64,
    rates: list[float] | None = None,
) -> list[list[Tensor]]:
    """Return the parameters after each step of the optimizer that ``make`` builds."""
    params = random_params(dtype)
    optimizer = make(params)
    path = []
    for step in range(steps):
        set_grads(params, step)
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
        optimizer.step()
        path.append([param.detach().clone() for param in params])
    return path


def assert_same_path(left: list[list[Tensor]], right: list[list[Tensor]], rtol: float) -> None:
    for step, (a, b) in enumerate(zip(left, right, strict=True)):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(
                x, y, rtol=rtol, atol=rtol, msg=lambda m, s=step: f"step {s}: {m}"
            )


COMBINATIONS = [
    {
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for momentum, dampening, decay, nesterov, maximize in itertools.product(
        (0.0, 0.9), (0.0, 0.5), (0.0, 0.01), (False, True), (False, True)
    )
    if not (nesterov and (momentum == 0.0 or dampening != 0.0))
]


@pytest.mark.parametrize("option", COMBINATIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("fused", [None, False])
def test_equals_torch_over_100_steps(option: dict[str, Any], fused: bool | None) -> None:
    ours = run(lambda p: SGD(p, lr=0.05, fused=fused, **option))
    theirs = run(lambda p: torch.optim.SGD(p, lr=0.05, **option))
    assert_same_path(ours, theirs, 1e-12)


def test_equals_torch_in_float32() -> None:
    option = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    ours = run(lambda p: SGD(p, **option), dtype=torch.float32)
    theirs = run(lambda p: torch.optim.SGD(p, **option), dtype=torch.float32)
    assert_same_path(ours, theirs, 1e-5)


def test_damped_and_rate_inside_are_one_form_at_a_constant_rate() -> None:
    # Lectures S3 and S4: v <- mu v + (1-mu) g, w <- w - alpha v equals m <- mu m + gamma g,
    # w <- w - m with alpha = gamma / (1 - mu).
    mu, gamma = 0.9, 0.03
    inside = run(lambda p: SGD(p, lr=gamma, momentum=mu, lr_inside_momentum=True))
    damped = run(
        lambda p: SGD(p, lr=gamma / (1 - mu), momentum=mu, dampening=mu, dampen_first_step=True)
    )
    assert_same_path(inside, damped, 1e-12)


def test_forms_differ_after_a_change_of_rate_by_the_predicted_factor() -> None:
    # Falling to a tenth: what the buffer holds keeps the old rate inside, the new one outside.
    rates = [0.1] * 5 + [0.01] * 5
    option = {"lr": 0.1, "momentum": 0.9}
    inside = run(lambda p: SGD(p, lr_inside_momentum=True, **option), 10, rates=rates)
    outside = run(lambda p: SGD(p, **option), 10, rates=rates)
    assert_same_path(inside[:5], outside[:5], 1e-12)
    grads = []
    params = random_params()
    for step in range(6):
        set_grads(params, step)
        grads.append(params[0].grad)
    old = sum(0.9 ** (5 - step) * grads[step] for step in range(5))  # the buffer's share at step 5
    torch.testing.assert_close(outside[5][0] - inside[5][0], (0.1 - 0.01) * old, rtol=1e-10, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_correction_equals_the_rate_outside(nesterov: bool) -> None:
    # Goyal et al. 2017, section 3: warm-up, then steps down.
    rates = [0.01 * (step + 1) for step in range(20)] + [0.2] * 20 + [0.02] * 20 + [0.002] * 20
    option = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
    corrected = run(
        lambda p: SGD(p, lr_inside_momentum=True, momentum_correction=True, **option),
        80,
        rates=rates,
    )
    outside = run(lambda p: SGD(p, **option), 80, rates=rates)
    assert_same_path(corrected, outside, 1e-12)


def test_nesterov_is_the_look_ahead_sequence_in_torchs_variables() -> None:
    # m <- mu m + lr grad(theta - mu m); theta <- theta - m, seen at theta - mu m. On a quadratic.
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = root @ root.T / 6
    param = nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = SGD([param], lr=0.1, momentum=0.9, nesterov=True)
    theta, m = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for _ in range(30):
        torch.testing.assert_close(param.detach(), theta - 0.9 * m, rtol=1e-12, atol=1e-12)
        m = 0.9 * m + 0.1 * hessian @ (theta - 0.9 * m)
        theta = theta - m
        param.grad = hessian @ param.detach()
        optimizer.step()


def test_closure_groups_and_missing_gradients() -> None:
    params = random_params()
    optimizer = SGD(params[:2], lr=0.1)
    optimizer.add_param_group({"params": params[2:], "lr": 0.0})
    before = [param.detach().clone() for param in params]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum() + (params[2] ** 2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(
        (before[0] ** 2).sum().item() + (before[2] ** 2).sum().item()
    )
    torch.testing.assert_close(params[0].detach(), 0.8 * before[0])
    for index in (1, 2, 3):  # no gradient, rate 0, no gradient
        assert torch.equal(params[index], before[index])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_last_parameters(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 2, 2, generator=generator)
    grad = torch.randn(4, 3, 2, 2, generator=generator)
    param = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    param.grad = grad.clone().to(memory_format=layout)
    optimizer = SGD([param], lr=0.5, momentum=0.5)
    for _ in range(2):
        optimizer.step()
    torch.testing.assert_close(param.detach(), start - 0.5 * grad - 0.5 * 1.5 * grad)
    assert param.is_contiguous(memory_format=torch.channels_last)


def test_loads_the_state_of_torchs_sgd_and_goes_on_alike() -> None:
    params = random_params()
    theirs = torch.optim.SGD(params, lr=0.05, momentum=0.9)
    set_grads(params, 0)
    theirs.step()
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    ours = SGD(copies, lr=1.0)
    ours.load_state_dict(theirs.state_dict())
    for step in range(1, 5):
        for group, optimizer in ((params, theirs), (copies, ours)):
            set_grads(group, step)
            optimizer.step()
    for a, b in zip(params, copies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "option",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "lr_inside_momentum": True, "momentum_correction": True},
    ],
    ids=["plain", "dampened", "corrected"],
)
def test_a_skipped_step_changes_nothing(option: dict[str, Any]) -> None:
    rates = [0.1, 0.2, 0.05, 0.3]

    def path(skips: tuple[int, ...]) -> list[Tensor]:
        params = random_params(torch.float32)
        optimizer = SGD(params, lr=0.1, **option)
        for step, rate in enumerate(rates):
            if step in skips:  # a step with a NaN, at some other rate
                set_grads(params, 99)
                params[0].grad.view(-1)[0] = float("nan")
                optimizer.param_groups[0]["lr"] = 7.0
                optimizer.found_inf = torch.ones(())
                optimizer.step()
            set_grads(params, step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.found_inf = torch.zeros(())
            optimizer.step()
        return [param.detach() for param in params]

    for a, b in zip(path(()), path((0, 2)), strict=True):
        assert torch.equal(a, b)


def test_grad_scaler_unscales_and_skips_in_the_step() -> None:
    params = random_params(torch.float32)
    plain = [nn.Parameter(param.detach().clone()) for param in params]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer, expected = SGD(params, lr=0.1, momentum=0.9), SGD(plain, lr=0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        expected.zero_grad()
        target = float("inf") if step == 2 else float(step)
        scaler.scale(sum((p * target).sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            sum((p * target).sum() for p in plain).backward()
            expected.step()
    assert scaler.get_scale() == 2.0**13
    for a, b in zip(params, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_clip_factor_goes_into_one_step_only() -> None:
    params, others = random_params(), random_params()
    ours, theirs = SGD(params, lr=0.1, momentum=0.9), torch.optim.SGD(others, lr=0.1, momentum=0.9)
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        kept = params[0].grad.clone()
        if step != 1:
            factor = clip_gradients(ours, 1.0)
            norm = torch.nn.utils.clip_grad_norm_(others, 1.0)
            assert factor.item() == pytest.approx(1.0 / (norm.item() + 1e-6), rel=1e-12)
        ours.step()
        theirs.step()
        assert torch.equal(params[0].grad, kept)  # clipping wrote nothing
        assert ours.grad_factor is None
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": -1.0}, "momentum=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"nesterov": True}, "nesterov needs"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs"),
        ({"momentum_correction": True}, "needs lr_inside_momentum"),
    ],
)
def test_wrong_hyperparameters_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SGD(random_params(), **option)


def test_complex_and_sparse_are_refused() -> None:
    with pytest.raises(UserError, match="complex64"):
        SGD([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse"):
        SGD(embedding.parameters(), lr=0.1).step()


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = SGD(random_params(), lr=0.1)
    with pytest.raises(UserError):
        optimizer.add_param_group({"params": random_params(seed=1), "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_fused_true_needs_the_compiled_op() -> None:
    SGD(random_params(), fused=None)
    if _ops.is_compiled("sgd_", torch.device("cpu")):
        SGD(random_params(), fused=True)
    with pytest.raises(RuntimeError, match="compiled op is absent on meta"):
        SGD([nn.Parameter(torch.zeros(2, device="meta"))], fused=True)


def test_torch_schedulers_drive_it() -> None:
    optimizer = SGD(random_params(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_compile_traces_clip_and_step_without_a_break() -> None:
    params, others = random_params(), random_params()
    compiled, plain = SGD(params, lr=0.1, momentum=0.9), SGD(others, lr=0.1, momentum=0.9)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step() -> None:
        clip_gradients(compiled, 1.0)
        compiled.step()

    for index in range(3):
        set_grads(params, index)
        set_grads(others, index)
        step()
        clip_gradients(plain, 1.0)
        plain.step()
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b)
