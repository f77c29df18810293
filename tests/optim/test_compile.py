"""torch.compile and CUDA graphs around a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.optim import LAMB, LARS, SGD, SGDW, clip_gradients

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr: SGD(params, lr, momentum=0.9),
    "sgdw": lambda params, lr: SGDW(params, lr, momentum=0.9, weight_decay=0.01),
    "lars": lambda params, lr: LARS(params, lr, weight_decay=0.01),
    "lamb": lambda params, lr: LAMB(params, lr, weight_decay=0.01, preset="nvlamb"),
}


def net(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).to(device)


def inputs_of(step: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(step))


class Frames:
    """A back end that counts the graphs it was given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_training_step_has_the_bits_of_the_plain_one(name: str) -> None:
    """The whole step: torch breaks the graph at ``backward`` and nowhere in ours."""
    found = []
    for compiled in (True, False):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters(), 0.1)

        def step(inputs: Tensor, model=model, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            clip_gradients(optimizer, 1.0)
            optimizer.step()
            return loss

        run = torch.compile(step, backend="aot_eager") if compiled else step
        losses = [run(inputs_of(index)) for index in range(3)]
        found.append([*losses, *(param.detach() for param in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_the_step_is_one_graph_for_every_rate(name: str) -> None:
    """With the rate in a tensor nothing is compiled again when it changes."""
    model, plain = net(), net()
    lr = torch.tensor(0.1)
    optimizer = OPTIMIZERS[name](model.parameters(), lr)
    expected = OPTIMIZERS[name](plain.parameters(), 0.1)
    frames = Frames()

    @torch.compile(backend=frames, fullgraph=True)
    def step() -> None:
        clip_gradients(optimizer, 1.0)
        optimizer.step()

    graphs = []
    for index in range(5):
        lr.fill_(0.1 / (index + 1))
        expected.param_groups[0]["lr"] = float(lr)
        for each in (model, plain):
            each.zero_grad()
            each(inputs_of(index)).square().sum().backward()
        step()
        clip_gradients(expected, 1.0)
        expected.step()
        graphs.append(frames.count)
    assert graphs[1:] == [graphs[1]] * 4, graphs  # the first step makes the state
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_captured_step_replays_with_new_rates_and_gradients(name: str) -> None:
    captured, plain = net("cuda"), net("cuda")
    lr = torch.tensor(0.1, device="cuda")
    optimizer = OPTIMIZERS[name](captured.parameters(), lr)
    expected = OPTIMIZERS[name](plain.parameters(), 0.1)

    def set_grads(model: nn.Module, index: int) -> None:
        grads = torch.autograd.grad(
            model(inputs_of(index).cuda()).square().sum(), list(model.parameters())
        )
        for param, grad in zip(model.parameters(), grads, strict=True):
            if param.grad is None:
                param.grad = grad.clone()
            else:
                param.grad.copy_(grad)

    def plain_step(index: int, rate: float) -> None:
        set_grads(plain, index)
        expected.param_groups[0]["lr"] = rate
        clip_gradients(expected, 1.0)
        expected.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # makes the state, as torch asks before a capture
        set_grads(captured, 0)
        clip_gradients(optimizer, 1.0)
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    plain_step(0, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        clip_gradients(optimizer, 1.0)
        optimizer.step()
    for index in range(1, 5):
        lr.fill_(0.1 / index)
        set_grads(captured, index)
        graph.replay()
        plain_step(index, 0.1 / index)
    for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
