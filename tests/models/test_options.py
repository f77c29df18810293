"""model.residual_gamma, model.drop, model.drop_path, model.init."""

import inspect

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers, initialize, models
from largebatch.models.layers import drop_path_rates, stochastic_depth
from largebatch.nn import FixedClassifier, NormConfig, find_classifier

LARGER = {f"nfnet_f{number}" for number in range(1, 7)}  # made as F0 is
OF_IMAGES = [
    entry.name
    for entry in models
    if "vocabulary" not in inspect.signature(entry.factory).parameters and entry.name not in LARGER
]
OFFERS = image_offers(10, (3, 32, 32))


def build(name, **options):
    return build_model(ModelConfig(name=name, **options), NormConfig(), OFFERS, seed=1)


def blocks_of(model):
    names = ("BasicBlock", "Bottleneck", "ResidualBlock", "PreActivationBlock")
    return [m for m in model.modules() if type(m).__name__.removeprefix("DropPath") in names]


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "wrn16_4"])
def test_gamma_zero_makes_blocks_their_shortcuts(name, drop_path):
    model = build(name, residual_gamma=0.0, drop_path=drop_path)
    for block in blocks_of(model):
        weight = (block.conv1.weight if name != "wrn16_4" else block.bn1.weight).shape
        x = torch.randn(2, weight[1] if len(weight) > 1 else weight[0], 8, 8)
        if name == "wrn16_4":
            active = torch.relu(block.bn1(x))
            expected = x if block.shortcut is None else block.shortcut(active)
        else:
            path = block.downsample if "resnet18 resnet50".count(name) else block.shortcut
            expected = torch.relu(x if path is None else path(x))
        torch.testing.assert_close(block(x), expected)
    other = build(name, residual_gamma=0.5)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), other(x))


def test_stochastic_depth_keeps_the_expectation_and_drops_whole_samples():
    layer = stochastic_depth(0.4)
    torch.manual_seed(0)
    out = layer(torch.ones(20_000, 2, 1, 1))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    kept = out[:, 0, 0, 0] > 0
    assert torch.equal(out[:, 0], out[:, 1])
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(3, 1)), torch.ones(3, 1))
    assert isinstance(stochastic_depth(0.0), nn.Identity)


def test_the_rate_grows_in_proportion_to_depth():
    assert drop_path_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for name, count in (("resnet18", 8), ("cifar_resnet20", 9), ("wrn16_4", 6)):
        rates = [block.drop_path.p for block in blocks_of(build(name, drop_path=0.5))]
        assert rates == pytest.approx(drop_path_rates(0.5, count))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "wrn16_4"])
def test_dropping_changes_training_only(name):
    plain = build(name).eval()
    dropping = build(name, drop=0.5, drop_path=0.5)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(dropping.eval()(x), plain(x))
    dropping.train()
    assert not torch.equal(dropping(x), dropping(x))


@pytest.mark.parametrize("name", ["f1", "vgg_cifar", "digits_cnn", "c1", "wrn16_4", "resnet18"])
def test_drop_reaches_the_model(name):
    rates = {m.p for m in build(name, drop=0.25).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.25}
    own = {m.p for m in build(name).modules() if isinstance(m, nn.Dropout)}
    assert own <= ({0.5} if name == "c1" else {0.0})


@pytest.mark.parametrize("layer", [nn.Linear(400, 600), nn.Conv2d(48, 96, 5)])
def test_initial_variances(layer):
    fan_in = layer.weight[0].numel()
    fan_out = layer.weight[:, 0].numel()
    torch.manual_seed(0)
    initialize(layer, "kaiming")
    assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.02)
    assert layer.weight.abs().max() > 3 * (2 / fan_in) ** 0.5  # normal, not uniform
    assert not layer.bias.any()
    initialize(layer, "xavier")
    assert layer.weight.var().item() == pytest.approx(2 / (fan_in + fan_out), rel=0.02)
    assert layer.weight.abs().max() <= (6 / (fan_in + fan_out)) ** 0.5
    before = layer.weight.clone()
    initialize(layer, "default")
    assert torch.equal(layer.weight, before)


def test_init_reaches_the_model_and_spares_the_norms():
    model = build("cifar_resnet20", init="kaiming", residual_gamma=0.0)
    assert model.fc.weight.var().item() == pytest.approx(2 / 64, rel=0.2)
    assert not model.fc.bias.any()
    assert not blocks_of(model)[0].bn2.weight.any()


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_model_takes_a_fixed_classifier(name, kind):
    offers = image_offers(10, (3, 64, 64))
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, classifier=kind), NormConfig(), offers)
    last = model.get_submodule(find_classifier(model))
    assert isinstance(last, FixedClassifier)
    assert (last.kind, last.num_classes) == (kind, 10)
    learned = sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        plain = build_model(ModelConfig(name=name), NormConfig(), offers)
    saved = sum(p.numel() for p in plain.parameters()) - learned
    assert saved == 10 * last.in_features - 1


def test_a_fixed_classifier_trains_the_features():
    model = build("cifar_resnet20", classifier="hadamard", init="kaiming").double()
    logits = model(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "hadamard", "num_classes": 100}, "model.classifier=hadamard: 64 features"),
        ({"name": "f1", "drop_path": 0.1}, "model.drop_path=0.1: model.name=f1 has no such"),
        ({"name": "c1", "residual_gamma": 0.0}, "model.residual_gamma=0.0: model.name=c1"),
        ({"drop": 1.0}, "model.drop=1.0"),
        ({"drop_path": -0.1}, "model.drop_path=-0.1"),
        ({"num_classes": 1}, "model.num_classes=1"),
        ({"residual_gamma": float("inf")}, "model.residual_gamma"),
        ({"name": "resnet51"}, "model.name='resnet51'.*did you mean 'resnet"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        build(**{"name": "cifar_resnet20", **options})
