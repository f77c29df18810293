"""Every registered model builds, learns, converts, and has the size that it is known for."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers, models
from largebatch.nn import (
    GhostBatchNorm,
    NormConfig,
    fix_classifier,
    ghost_place,
    has_batch_norm,
    step_end,
)

SMALLEST = {"digits_cnn": (1, 8, 8), "f1": (1, 28, 28), "f2": (1, 1, 360),
            "alexnet": (3, 64, 64), "alexnet_bn": (3, 64, 64)}  # fmt: skip
SLOW = {"resnet34", "resnet50", "resnet101", "resnet152", "cifar_resnet32", "cifar_resnet44",
        "nf_resnet50", "nfnet_f0", "alexnet", "alexnet_bn", "densenet_bc_100_12", "densenet169",
        "c2", "c4"}  # fmt: skip
LARGER = {f"nfnet_f{number}" for number in range(1, 7)}  # than memory lets one train; as F0 is
CLOSED = {"nf_resnet50", "nfnet_f0"}  # whose branches start closed, and have no gradient then
NORM_FREE = {"alexnet", "adam_cnn", *CLOSED}
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ())
         for n in models.names() if n not in LARGER]  # fmt: skip
OF_TEXT = {e.name for e in models if "vocabulary" in inspect.signature(e.factory).parameters}

COUNTS = {
    "cifar_resnet8": (78_042, 10),
    "cifar_resnet56": (855_770, 10),
    "f1": (1_462_794, 10),
    "c1": (1_757_834, 10),
    "c3": (1_775_204, 100),
    "vgg_cifar": (14_724_042, 10),
    "wrn16_4": (2_748_890, 10),
    "resnet18": (11_689_512, 1000),
    "resnet50": (25_557_032, 1000),
    "nf_resnet50": (25_556_984, 1000),
    "alexnet": (61_100_840, 1000),
    "alexnet_bn": (61_110_184, 1000),
    "densenet_bc_100_12": (800_032, 100),
    "densenet169": (14_149_480, 1000),
    "shufflenet_v1": (1_826_554, 1000),  # one more in the table of Hoffer et al.
    "vgg9": (2_789_706, 10),
    "f2": (2_780_085, 1973),
    "c2": (14_991_946, 10),
    "c4": (15_038_116, 100),
    "adam_cnn": (2_371_266, 10),
    "nfnet_f0": (71_489_284, 1000),
    "nfnet_f1": (132_634_256, 1000),
    "nfnet_f2": (193_779_228, 1000),
    "nfnet_f3": (254_924_200, 1000),
    "nfnet_f4": (316_069_172, 1000),
    "nfnet_f5": (377_214_144, 1000),
    "nfnet_f6": (438_359_116, 1000),
}

# Hoffer et al. 2018, "Fix your classifier", table 1: what need not be learned, in percent of all.
SHARES = {
    "cifar_resnet56": (0.07, 10),
    "densenet_bc_100_12": (4.27, 100),
    "resnet50": (8.01, 1000),
    "densenet169": (11.76, 1000),
    "shufflenet_v1": (52.56, 1000),
}


def shape_of(name):
    return SMALLEST.get(name, (3, 32, 32))


def build(name, norm=None, **options):
    config = ModelConfig(name=name, **options)
    offers = image_offers(7, shape_of(name))
    if name in OF_TEXT:
        memory = "memory" in inspect.signature(models.entry(name).factory).parameters
        offers = {"vocabulary": 7, "context": 6, **({"streams": 14} if memory else {})}
    return build_model(config, norm or NormConfig(), offers, seed=0)


def inputs_of(name):
    """Return 14 images, or windows of text."""
    generator = torch.Generator().manual_seed(0)
    if name in OF_TEXT:
        return torch.randint(0, 7, (14, 6), generator=generator)
    return torch.randn(14, *shape_of(name), generator=generator)


def logits_of(out):
    """Return logits (14, 7) of a model's output: of text, those of the last token."""
    out = out[0] if isinstance(out, tuple) else out
    return out[:, -1] if out.ndim == 3 else out


@pytest.mark.parametrize("name", NAMES)
def test_a_step_lowers_the_loss(name):
    """A step so short that the gradient predicts what it gains, gains about that."""
    options = {"residual_gamma": 1.0} if name in CLOSED else {}
    model, gain = build(name, **options), 0.01
    x = inputs_of(name)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)  # the same units dropped, so that the losses can be compared
        losses.append(F.cross_entropy(logits_of(model(x)), torch.arange(14) % 7))
        if len(losses) == 1:
            losses[0].backward()
            assert all(p.grad.abs().sum() > 0 for p in model.parameters())
            square = sum(p.grad.square().sum() for p in model.parameters())
            torch.optim.SGD(model.parameters(), lr=gain / square.item()).step()
    assert (losses[0] - losses[1]).item() == pytest.approx(gain, rel=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_ghost_norm_everywhere(name):
    if not has_batch_norm(build(name)):
        # Transformers' norms read one sample.
        assert name in NORM_FREE or name in OF_TEXT or name not in COUNTS
        pytest.skip("has no norms")
    model = build(name, NormConfig(kind="ghost", ghost_size=4))
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())
    norms = [m for m in model.modules() if isinstance(m, GhostBatchNorm)]
    with ghost_place(0, 2):
        model(torch.randn(8, *shape_of(name))).sum().backward()
    step_end(model, 2)
    assert norms
    assert all(int(norm.num_batches_tracked) == 2 for norm in norms)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts(name, count):
    parameters, classes = count
    with torch.device("meta"):
        model = models.entry(name).factory(num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "share"), SHARES.items())
def test_shares_of_fixed_classifiers(name, share):
    percent, classes = share
    with torch.device("meta"):
        model = models.entry(name).factory(num_classes=classes)
        learned = sum(p.numel() for p in model.parameters())
        fixed = sum(p.numel() for p in fix_classifier(model, "orthonormal").parameters())
    saved = learned - fixed + 1  # a scale is learned in place of the matrix
    assert 100 * saved / learned == pytest.approx(percent, abs=0.006)


@pytest.mark.parametrize("name", sorted(n for n in models.names() if n.startswith("nfnet")))
def test_the_published_sizes_of_nfnets(name):
    """Millions of parameters, to the decimal that the table has."""
    sizes = [71.5, 132.6, 193.8, 254.9, 316.1, 377.2, 438.4]
    assert round(COUNTS[name][0] / 1e6, 1) == sizes[int(name[-1])]


@pytest.mark.parametrize("entry", list(models), ids=lambda entry: entry.name)
def test_cards_are_written(entry):
    assert 20 < len(entry.summary) < 100
    assert entry.source or entry.name == "digits_cnn"


@pytest.mark.parametrize("name", ["c1", "cifar_resnet20", "digits_cnn", "resnet18", "vgg_cifar"])
def test_images_that_do_not_fit_are_refused(name):
    with pytest.raises(UserError, match=rf"data.image_size: model.name={name} takes .* not 3x3"):
        build_model(ModelConfig(name=name), NormConfig(), image_offers(10, (3, 3, 3)))


@pytest.mark.parametrize("name", ["c1", "f1", "cifar_resnet20", "resnet18", "wrn16_4"])
def test_one_channel_and_odd_sizes(name):
    model = build_model(ModelConfig(name=name), NormConfig(), image_offers(10, (1, 33, 35)), seed=0)
    assert model(torch.randn(2, 1, 33, 35)).shape == (2, 10)
