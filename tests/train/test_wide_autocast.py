"""bfloat16 products in float32 against torch's own autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from largebatch.train.config import PrecisionConfig
from largebatch.train.precision import Precision
from largebatch.train.wide_autocast import WideAutocast

CALLS = {
    "conv2d": lambda x, w, b: functional.conv2d(x, w, b, padding=1),
    "conv_transpose2d": lambda x, w, b: functional.conv_transpose2d(x, w.transpose(0, 1), b),
    "linear": lambda x, w, b: functional.linear(x[..., :3], w[0, :, :, 0], b),
    "matmul": lambda x, w, b: x @ x.detach().mT,
    "bmm": lambda x, w, b: torch.bmm(x.flatten(1, 2), x.detach().flatten(1, 2).mT),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_those_of_bfloat16(name):
    torch.manual_seed(0)
    values = [torch.randn(4, 8, 6, 6), torch.randn(8, 8, 3, 3), torch.randn(8)]

    def run(context):
        leaves = [value.clone().requires_grad_() for value in values]
        with context:
            out = CALLS[name](*leaves)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape).to(out.dtype))
        return out, [leaf.grad for leaf in leaves if leaf.grad is not None]

    out, gradients = run(WideAutocast())
    theirs, their_gradients = run(torch.autocast("cpu", torch.bfloat16))
    assert out.dtype == theirs.dtype
    assert [g.dtype for g in gradients] == [g.dtype for g in their_gradients]
    for ours, other in zip([out, *gradients], [theirs, *their_gradients], strict=True):
        scale = other.float().abs().max()
        assert (ours.float() - other.float()).abs().max() <= 2**-7 * scale
        # On the grid of bfloat16.
        assert torch.equal(ours.float(), ours.to(torch.bfloat16).float())


def test_operands_are_rounded_and_sums_are_not():
    with WideAutocast():
        # 1 + 2^-9 is no bfloat16; a sum of 256 products of 1 and one of 2^-1 is kept until the end.
        assert float(torch.tensor([1 + 2**-9]) @ torch.tensor([1.0])) == 1.0
        row = torch.cat([torch.ones(256), torch.full((4,), 0.5)])
        assert float(row @ torch.ones(260)) == 258.0
    assert float(torch.tensor([1 + 2**-9]) @ torch.tensor([1.0])) == 1 + 2**-9


def test_other_types_stay_as_they_are():
    with WideAutocast():
        for dtype in (torch.int64, torch.float64):
            product = torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)
            assert product.dtype == dtype and product.sum() == 8
        assert nn.BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).dtype == torch.float32


def test_it_can_be_entered_again():
    context = WideAutocast()
    for _ in range(2):
        with context:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("emulated", [True, False])
def test_it_serves_where_the_processor_has_no_bfloat16(emulated, monkeypatch):
    found = {"architecture": "x86_64", "avx512_bf16": not emulated, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    precision = Precision(PrecisionConfig(compute="bf16"), torch.device("cpu"))
    assert isinstance(precision.autocast(), WideAutocast) is emulated


def test_a_model_trains_as_under_autocast():
    losses = []
    for context in (WideAutocast(), torch.autocast("cpu", torch.bfloat16)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        images, labels = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))
        for _ in range(30):
            with context:
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1.5 and losses[0] == pytest.approx(losses[1], abs=0.02)
