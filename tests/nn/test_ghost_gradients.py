"""Gradients of weight and bias by each ghost, and the noise scale they estimate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from largebatch.nn import GhostBatchNorm, L1BatchNorm, convert_batch_norm, frozen_statistics
from largebatch.probes.noise_terms import noise_terms_of


@pytest.mark.parametrize("kind", [GhostBatchNorm, L1BatchNorm])
def test_an_observer_sees_each_ghost_and_changes_nothing(kind: type) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 10, 3, 4)
    observed, plain = (kind(3, 4, activation="relu") for _ in range(2))
    nn.init.uniform_(observed.weight)
    plain.load_state_dict(observed.state_dict())
    seen: list[Tensor] = []
    observed.gradient_observer = seen.append
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for norm, one in zip((observed, plain), inputs, strict=True):
        norm(one, one / 2).backward(upstream)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for found, expected in zip(observed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)
    (gradients,) = seen
    assert gradients.shape == (2, 3, 3)
    for number, (ghost, part) in enumerate(zip(x.split(4), upstream.split(4), strict=True)):
        alone = kind(3, 4, activation="relu")
        alone.load_state_dict(plain.state_dict())
        alone(ghost, ghost / 2).backward(part)
        expected = torch.stack((alone.weight.grad, alone.bias.grad))
        torch.testing.assert_close(gradients[:, number], expected)
    observed.eval()(x.requires_grad_()).sum().backward()
    assert len(seen) == 1


def test_passes_that_leave_no_statistics_are_not_observed() -> None:
    model = nn.Sequential(GhostBatchNorm(3, 4))
    seen: list[Tensor] = []
    model[0].gradient_observer = seen.append
    x = torch.randn(8, 3)
    with frozen_statistics(model):
        model(x).sum().backward()
        assert not seen
    model(x).sum().backward()
    assert len(seen) == 1


def test_the_estimate_is_unbiased() -> None:
    """reference: 4,000 draws of a gradient with |G| = 1 and tr(Sigma) = 50 in 1,000 dimensions."""
    generator = torch.Generator().manual_seed(0)
    dimensions, trace, sizes = 1000, 50.0, [8, 8, 8, 8, 8, 8, 8, 5]
    mean = torch.full((dimensions,), dimensions**-0.5, dtype=torch.float64)
    counts = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
    found = []
    for _ in range(4000):
        noise = torch.randn(8, dimensions, dtype=torch.float64, generator=generator)
        means = mean + noise * (trace / dimensions / counts).sqrt()
        found.append(torch.stack(noise_terms_of(means * counts / counts.sum(), sizes)))
    results = torch.stack(found)
    error = results.std(0) / len(found) ** 0.5
    truth = torch.tensor([1.0, trace], dtype=torch.float64)
    assert ((results.mean(0) - truth).abs() < 4 * error).all()
    assert (error / truth < 0.01).all()
    # The plain squared length of the step's gradient is not: it has tr(Sigma) / B too much.
    assert trace / sum(sizes) > 50 * error[0]


def test_through_a_module_on_synthetic_gradients() -> None:
    """Upstream gradients with a known mean and variance, given to the bias of a norm."""
    torch.manual_seed(0)
    channels, ghosts, size = 4, 8, 16
    norm = convert_batch_norm(nn.BatchNorm1d(channels), "ghost", ghost_size=size).double()
    seen: list[Tensor] = []
    norm.gradient_observer = seen.append
    signal = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    samples = ghosts * size
    for _ in range(3000):
        x = torch.randn(samples, channels, dtype=torch.float64)
        norm(x).backward((signal + torch.randn_like(x) * 2) / samples)
    terms = torch.stack([torch.stack(noise_terms_of(one[1], [size] * ghosts)) for one in seen])
    error = terms.std(0) / len(seen) ** 0.5
    truth = torch.tensor([float(signal.square().sum()), 4.0 * channels], dtype=torch.float64)
    assert ((terms.mean(0) - truth).abs() < 4 * error).all()
    assert (error / truth < torch.tensor([0.05, 0.01])).all()


def test_ghosts_and_sizes_must_fit() -> None:
    for ghosts, sizes in ((3, [4, 4]), (1, [4])):
        with pytest.raises(ValueError, match="at least 2 of each"):
            noise_terms_of(torch.zeros(ghosts, 5), sizes)
