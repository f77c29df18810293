"""build_model: seeds, types, memory order, models of one's own."""

import sys
import types

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers, try_images
from largebatch.nn import GhostBatchNorm, NormConfig


def build(config, shape=(1, 8, 8), classes=10, **rest):
    return build_model(config, NormConfig(), image_offers(classes, shape), **rest)


def test_a_seed_decides_the_weights_and_spares_the_generator():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second, third = (build(ModelConfig(), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0].weight, third[0].weight)


def test_float64_starts_from_the_float32_values():
    single, double = (build(ModelConfig(), dtype=t, seed=1) for t in (torch.float32, torch.float64))
    assert double[0].weight.dtype == torch.float64
    assert torch.equal(single[0].weight.double(), double[0].weight)
    assert double[1].running_var.dtype == torch.float64


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last(channels_last):
    weight = build(ModelConfig(channels_last=channels_last))[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_num_classes_of_the_config_goes_first():
    assert build(ModelConfig(num_classes=12))(torch.zeros(2, 1, 8, 8)).shape == (2, 12)
    assert build(ModelConfig(), classes=4)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


class Own(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 8), nn.BatchNorm1d(8),
            nn.Linear(8, num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("own_models")
    module.Own = Own
    module.fixed = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module.anything = lambda **kwargs: nn.Sequential(
        nn.Flatten(), nn.Linear(64, kwargs.pop("num_classes")), nn.Identity(**kwargs)
    )
    module.needs_more = lambda num_classes, width: nn.Identity()
    module.no_module = lambda: 3
    module.no_tensor = lambda: nn.LSTM(8, 8)
    monkeypatch.setitem(sys.modules, "own_models", module)


@pytest.mark.usefixtures("own_module")
def test_models_of_ones_own():
    model = build_model(
        ModelConfig(name="own_models:Own"),
        NormConfig(kind="ghost", ghost_size=2),
        image_offers(10, (1, 8, 8)),
    )
    assert isinstance(model.layers[2], GhostBatchNorm)
    assert model.training
    assert int(model.layers[2].num_batches_tracked) == 0
    for name in ("fixed", "anything"):
        assert build(ModelConfig(name=f"own_models:{name}"))(torch.zeros(2, 1, 8, 8)).shape == (
            2,
            10,
        )


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="own_models:fixed", num_classes=3), r"shape \(N, 3\).*\(2, 10\)"),
        (ModelConfig(name="own_models:needs_more"), "cannot be called with num_classes.*width"),
        (ModelConfig(name="own_models:no_module"), "returned a int, not a torch.nn.Module"),
        (ModelConfig(name="own_models:no_tensor"), "own_models:no_tensor"),
        (ModelConfig(name="own_models:fixed", drop=0.1), "model.drop=0.1: .* no such option"),
        (ModelConfig(name="own_models:absent"), "model.name='own_models:absent'"),
        (ModelConfig(name="no_such_module:model"), "no_such_module"),
    ],
)
def test_misfits_of_ones_own(config, message):
    with pytest.raises(UserError, match=message):
        build(config)


@pytest.mark.usefixtures("own_module")
def test_images_that_a_model_of_ones_own_cannot_take():
    with pytest.raises(UserError, match="own_models:fixed: cannot take images of 3x9x9"):
        build(ModelConfig(name="own_models:fixed"), shape=(3, 9, 9))


def test_a_later_image_size_is_tried_ahead():
    fixed, free = build(ModelConfig(name="f1")), build(ModelConfig(name="digits_cnn"))
    fixed[2].eval()
    with pytest.raises(UserError, match=r"model\.name=f1: cannot take images of 1x16x16"):
        try_images(fixed, "f1", 10, (1, 16, 16))
    try_images(free, "digits_cnn", 10, (1, 16, 16))
    assert fixed.training
    assert not fixed[2].training
