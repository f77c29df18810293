"""Models of people's own that do not fit: one line that names the model, or its parameter."""

import sys
import types

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import GhostBatchNorm, NormConfig


class Base(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.answer(self.fc(x.flatten(1)))

    def answer(self, y):
        return y


def own(name, **members):
    return type(name, (Base,), members)


def raises(self, y):
    raise KeyError("inside")


def raises_in_training(self, y):
    assert not self.training, "not this way"
    return y


def changed_in_place(self, y):
    y = y.sigmoid()
    y.mul_(2)
    return y


def detached_in_training(self, y):
    return y.detach() if self.training else y


class Meta(Base):
    def __init__(self, num_classes):
        with torch.device("meta"):
            super().__init__(num_classes)


class Buffered(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("table", torch.ones(3, device="meta"))


class Frozen(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)


class Complex(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class ForOtherImages(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.Linear(3 * 224 * 224, num_classes)


class OtherClasses(Base):
    def __init__(self, num_classes):
        super().__init__(7)


class Unmade(Base):
    def __init__(self, num_classes):
        raise FileNotFoundError("no weights here")


class Ends(Base):
    def __init__(self, num_classes):
        sys.exit(3)


class NoSuper(nn.Module):
    def __init__(self, num_classes):
        self.fc = nn.Linear(2, 2)


class NoModule:
    def __init__(self, num_classes):
        raise AssertionError("was called")


MODELS = {
    "Tuple": (own("Tuple", answer=lambda self, y: (y, y)), "returned a tuple"),
    "TupleInTraining": (
        own("TupleInTraining", answer=lambda self, y: (y, y) if self.training else y),
        "in training returned a tuple",
    ),
    "Dict": (own("Dict", answer=lambda self, y: {"logits": y}), "returned a dict"),
    "Nothing": (own("Nothing", answer=lambda self, y: None), "returned a NoneType"),
    "Flat": (own("Flat", answer=lambda self, y: y.argmax(1)), r"\(N, 10\).*returned \(2,\)"),
    "Whole": (own("Whole", answer=lambda self, y: y.long()), "int64"),
    "OtherClasses": (OtherClasses, r"shape \(N, 10\).*\(2, 7\).*model.num_classes"),
    "Raises": (own("Raises", answer=raises), r"KeyError: 'inside' \(.*test_trial.py:\d+\)"),
    "RaisesInTraining": (
        own("RaisesInTraining", answer=raises_in_training),
        r"in training .*AssertionError: not this way.*test_trial.py:\d+",
    ),
    "InPlace": (own("InPlace", answer=changed_in_place), "backward pass raised RuntimeError"),
    "Detached": (own("Detached", answer=lambda self, y: y.detach()), "no trainable parameter"),
    "DetachedInTraining": (
        own("DetachedInTraining", answer=detached_in_training),
        "no trainable parameter",
    ),
    "ForOtherImages": (ForOtherImages, r"cannot take images of 1x8x8.*mat1"),
    "Meta": (Meta, r"parameter fc\.weight is on the meta device"),
    "Buffered": (Buffered, r"buffer table is on the meta device"),
    "Elsewhere": (
        own("Elsewhere", answer=lambda self, y: y.to("meta")),
        "returned them on meta, not on cpu",
    ),
    "Frozen": (Frozen, "2 parameters, all frozen: there is nothing to train"),
    "NoParameters": (lambda num_classes: nn.Flatten(), "no parameters: there is nothing to train"),
    "Complex": (Complex, "parameter phase is complex"),
    "Unmade": (Unmade, r"FileNotFoundError: no weights here.*test_trial.py:\d+"),
    "Ends": (Ends, "SystemExit: 3"),
    "NoSuper": (NoSuper, "to make it raised AttributeError"),
    "NoModule": (NoModule, "a class that is no torch.nn.Module"),
    "ClassOfOne": (lambda num_classes: Base, "returned a type, not a torch.nn.Module"),
}


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    module = types.ModuleType("people_s_models")
    for name, (factory, _) in MODELS.items():
        setattr(module, name, factory)
    module.Base = Base
    module.Lazy = Lazy
    module.Stateful = Stateful
    monkeypatch.setitem(sys.modules, "people_s_models", module)


def build(name, norm=None, **rest):
    config = ModelConfig(name=f"people_s_models:{name}")
    return build_model(config, norm or NormConfig(), image_offers(10, (1, 8, 8)), **rest)


@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_fit_is_one_line(name):
    with pytest.raises(UserError, match=MODELS[name][1]) as found:
        build(name)
    assert f"model.name=people_s_models:{name}: " in str(found.value)
    assert "\n" not in str(found.value)


class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(),
                                    nn.LazyLinear(num_classes))  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def test_lazy_layers_are_drawn_from_the_seed():
    norm = NormConfig(kind="ghost", ghost_size=2)
    torch.manual_seed(1)
    first = build("Lazy", norm, seed=5)
    torch.manual_seed(2)
    second = build("Lazy", norm, seed=5)
    assert isinstance(first.layers[2], GhostBatchNorm)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


class Stateful(Base):
    """Everything that a forward pass may change: statistics, flags, the generator, gradients."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(num_classes)
        self.frozen = nn.BatchNorm1d(num_classes).eval()
        self.drop = nn.Dropout(0.5)

    def answer(self, y):
        return self.frozen(self.norm(self.drop(y)))


def test_the_trial_leaves_no_trace():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = build("Stateful", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.norm.training and not model.frozen.training
    assert int(model.norm.num_batches_tracked) == 0
    assert torch.equal(model.norm.running_var, torch.ones(10))
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(5)
    assert torch.equal(Base(10).fc.weight, model.fc.weight)
