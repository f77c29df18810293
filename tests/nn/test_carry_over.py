"""What conversion keeps of a norm besides its parameters; norms that end in an activation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from largebatch._errors import UserError
from largebatch.nn import FOLLOWERS, GhostBatchNorm, convert_batch_norm, fuse, unfuse


class NormAct(nn.BatchNorm2d):
    """Built as timm's BatchNormAct2d is."""

    def __init__(self, num_features: int, act: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(input)))
        return y


class SyncNormAct(nn.SyncBatchNorm):
    """Built as timm's SyncBatchNormAct."""

    forward = NormAct.forward


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (NormAct, SyncNormAct):
        monkeypatch.setitem(FOLLOWERS, f"{__name__}.{cls.__name__}", ("drop", "act"))


def hooked() -> tuple[nn.Sequential, list[str], list[Any]]:
    """A model whose norm calls hooks of every sort, what they note, and their handles."""
    model, seen = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), list[str]()
    norm = model[1]

    def note(what: str) -> Any:
        return lambda *args, **kwargs: seen.append(what)

    handles = [
        norm.register_forward_hook(note("forward")),
        norm.register_forward_pre_hook(note("before")),
        norm.register_forward_hook(note("keywords"), with_kwargs=True),
        norm.register_full_backward_hook(note("backward")),
        norm.register_state_dict_post_hook(note("saved")),
        norm.register_load_state_dict_pre_hook(
            lambda module, *_: seen.append(type(module).__name__)
        ),
        norm.register_load_state_dict_post_hook(note("loaded")),
    ]
    return model, seen, handles


@pytest.mark.parametrize("kind", ["ghost", "l1", "sync", "none", "layer", "batch"])
def test_hooks(kind: str) -> None:
    model, seen, handles = hooked()
    convert_batch_norm(model, kind, ghost_size=2 if kind in ("ghost", "l1") else None)
    model(torch.randn(4, 3, 2, 2)).sum().backward()
    model.load_state_dict(model.state_dict())
    kept = ["before", "forward", "keywords", "backward", "saved", type(model[1]).__name__, "loaded"]
    assert seen == kept
    for handle in handles:
        handle.remove()
    model(torch.randn(4, 3, 2, 2))
    assert seen == kept


def test_attributes_buffers_and_flags_there_and_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    old = model[0]
    old.tag, old.extra = {"a": 1}, nn.Linear(1, 1)
    old.register_buffer("mine", torch.ones(2))
    old.register_buffer("hidden", torch.ones(2), persistent=False)
    old.register_parameter("scale", nn.Parameter(torch.ones(1)))
    old.weight.requires_grad_(False)
    saved, parameters = list(old.state_dict()), list(model.parameters())
    for kind in ("ghost", "l1", "layer", "ghost", "batch"):
        new = convert_batch_norm(model, kind, ghost_size=2 if kind in ("ghost", "l1") else None)[0]
        assert new is not old
        assert new.tag is old.tag
        assert new.extra is old.extra
        assert new.mine is old.mine
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        assert not new.weight.requires_grad
        assert "hidden" not in new.state_dict()
        assert new(torch.randn(4, 3, 2, 2)).shape == (4, 3, 2, 2)  # the linear layer is not called
    assert sorted(new.state_dict()) == sorted(saved)
    assert sorted(vars(new)) == sorted(vars(old))


def test_pruned() -> None:
    norm = nn.BatchNorm2d(3)
    prune.l1_unstructured(norm, "weight", amount=1)
    new = convert_batch_norm(nn.Sequential(norm), "ghost", ghost_size=2)
    new(torch.randn(4, 3, 2, 2)).sum().backward()
    assert new[0].weight_orig is norm.weight_orig
    assert new[0].weight_orig.grad is not None
    assert int((new[0].weight == 0).sum()) == 1


def test_what_would_be_lost_is_refused_by_name() -> None:
    def refused(norm: nn.Module, message: str) -> None:
        with pytest.raises(UserError, match=message):
            convert_batch_norm(nn.Sequential(norm), "ghost", ghost_size=2)

    replaced = nn.BatchNorm2d(3)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    refused(replaced, "BatchNorm2d: its forward was replaced")
    refused(nn.LazyBatchNorm2d(), "LazyBatchNorm2d.*run a batch through the model first")
    refused(NormAct(3), "NormAct is not a plain batch norm.*FOLLOWERS")
    parametrized = nn.BatchNorm2d(3)
    parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    refused(parametrized, "take its parametrizations away first")
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UserError, match=r"compiled by torch\.jit"):
        convert_batch_norm(scripted, "ghost", ghost_size=2)
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    lazy(torch.randn(2, 3, 1, 1))
    assert isinstance(convert_batch_norm(lazy, "ghost", ghost_size=2)[0], GhostBatchNorm)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU(), nn.PReLU(init=0.1), nn.Identity()])
def test_norms_with_an_activation(act: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3, act)).double()
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    model(x)
    plain = copy.deepcopy(model)
    convert_batch_norm(model, "ghost", ghost_size=2)
    assert model[1].act is act
    assert list(model.state_dict()) == list(plain.state_dict())
    by_ghost = torch.cat([copy.deepcopy(plain)(ghost) for ghost in x.split(2)])
    folded = fuse(copy.deepcopy(model))
    assert (folded[1].activation == "relu") == isinstance(act, nn.ReLU)
    for ghost in x.split(2):
        plain(ghost)
    for each in (model, folded):
        torch.testing.assert_close(each(x), by_ghost)
        torch.testing.assert_close(each.eval()(x), plain.eval()(x))
        torch.testing.assert_close(torch.fx.symbolic_trace(each)(x), each(x))
        torch.testing.assert_close(torch.jit.script(each)(x), each(x))
    back = convert_batch_norm(unfuse(folded), "batch").eval()
    assert type(back[1]) is NormAct
    assert type(back[1].act) is type(act)
    torch.testing.assert_close(back(x), plain.eval()(x))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("kind", ["none", "layer", "instance", "weight", "l1", "sync", "batch"])
def test_other_kinds_keep_the_activation(kind: str) -> None:
    for norm in (NormAct(3), SyncNormAct(3)):
        if isinstance(norm, SyncNormAct):
            norm.act = nn.ReLU()
        model = convert_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1), norm), kind)
        y = model(torch.randn(4, 3, 4, 4))
        assert y.min() == 0
        assert type(model[1].act) is nn.ReLU
        assert not isinstance(model[1], nn.SyncBatchNorm)


def test_timm() -> None:
    norm_act = pytest.importorskip("timm.layers.norm_act")
    model = nn.Sequential(norm_act.BatchNormAct2d(3, act_layer=nn.SiLU)).eval()
    x = torch.randn(4, 3, 2, 2)
    expected = model(x)
    convert_batch_norm(model, "ghost", ghost_size=2)
    torch.testing.assert_close(model(x), expected)
    assert type(convert_batch_norm(model, "batch")[0]) is norm_act.BatchNormAct2d
    frozen = norm_act.FrozenBatchNormAct2d(3)
    assert convert_batch_norm(frozen, "ghost", ghost_size=2) is frozen


def test_hooks_of_a_block_survive_fusing() -> None:
    models = pytest.importorskip("torchvision.models")
    net = convert_batch_norm(models.resnet18(num_classes=4), "ghost", ghost_size=2)
    seen: list[str] = []
    net.layer1[0].register_forward_hook(lambda *_: seen.append("block"))
    net.layer1[1].relu.register_forward_hook(lambda *_: seen.append("relu"))
    net.layer1[0].tag = 1
    fused = fuse(net)
    assert type(fused.layer1[1]) is models.resnet.BasicBlock
    fused(torch.randn(4, 3, 32, 32))
    assert seen == ["block", "relu", "relu"]
    assert fused.layer1[0].tag == unfuse(fused).layer1[0].tag == 1
