"""What a norm promises by being one of torch's batch norms, and under torch's tools."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.nn import (
    FixedClassifier,
    GhostBatchNorm,
    L1BatchNorm,
    LInfBatchNorm,
    SyncBatchNorm,
    TopKBatchNorm,
    convert_batch_norm,
    fuse,
    ghost_place,
    merge_running_stats,
    step_end,
    unfuse,
)

KINDS: dict[str, Callable[..., Any]] = {
    "ghost": lambda **k: GhostBatchNorm(3, 4, **k),
    "relu": lambda **k: GhostBatchNorm(3, 4, activation="relu", **k),
    "sync": lambda **k: SyncBatchNorm(3, **k),
    "l1": lambda **k: L1BatchNorm(3, 4, **k),
    "linf": lambda **k: LInfBatchNorm(3, 4, **k),
    "topk": lambda **k: TopKBatchNorm(3, 4, **k),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def quiet_jit() -> Any:
    with warnings.catch_warnings():  # torch calls it deprecated
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        yield


@every_kind
@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_an_eps_that_is_not_positive_is_refused_as_torch_does(kind: str, eps: float) -> None:
    norm = KINDS[kind](eps=eps)
    for training in (True, False):
        with pytest.raises(ValueError, match="eps must be positive"):
            norm.train(training)(torch.ones(4, 3, 2))


@every_kind
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (4, 3, 0)])
def test_an_empty_batch_is_torchs(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    norm = KINDS[kind]()
    y = norm(x)
    assert y.shape == x.shape
    y.sum().backward()  # every parameter has a gradient, or DDP would wait for it
    assert [p.grad.tolist() for p in norm.parameters()] == [[0.0] * 3] * 2
    assert x.grad is not None
    with ghost_place(0, 2):
        assert norm(x, x).shape == x.shape
    step_end(norm, 1)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    for other in (KINDS[kind](affine=False), KINDS[kind](track_running_stats=False)):
        assert other(x).shape == other.eval()(x).shape == x.shape


@every_kind
def test_statistics_switched_off_and_on(kind: str) -> None:
    norm, x = KINDS[kind](), torch.randn(8, 3, 4, 4) + 1
    norm.track_running_stats = False
    norm(x)
    with ghost_place(0, 2):
        norm(x)
    step_end(norm, 2)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.num_batches_tracked == 0
    torch.testing.assert_close(norm.eval()(x), x.relu() if kind == "relu" else x, rtol=1e-3, atol=0)
    norm.train().track_running_stats = True
    step_end(norm, 2)
    norm(x)
    assert norm.running_mean.all()
    torch.func.replace_all_batch_norm_modules_(norm)
    norm(x)
    step_end(norm, 1)
    late = KINDS[kind](track_running_stats=False)
    late.track_running_stats = True
    late.reset_parameters()
    assert torch.equal(late(x), late.eval()(x)) == (kind == "sync")


@every_kind
def test_without_a_bias(kind: str) -> None:
    norm = KINDS[kind](bias=False)
    assert norm.bias is None
    norm.reset_parameters()
    assert next(iter(norm.state_dict())) == "weight"
    assert len(list(norm.parameters())) == 1
    norm(torch.randn(8, 3, 2)).sum().backward()
    assert KINDS[kind](affine=False, bias=False).weight is None


@every_kind
def test_merged_in_inference_mode_it_trains_on(kind: str) -> None:
    norm = KINDS[kind]()
    with torch.inference_mode():
        merge_running_stats(norm)
        norm.reset_running_stats()
    with ghost_place(0, 2):
        norm(torch.randn(8, 3) + 5)
    step_end(norm, 2)
    assert norm.running_mean.all()


@every_kind
def test_scripted_in_evaluation(kind: str) -> None:
    norm, x = KINDS[kind](), torch.randn(8, 3, 4, 4)
    norm(x)
    scripted = torch.jit.script(norm.eval())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for loaded in (scripted, torch.jit.load(file)):
        assert torch.equal(loaded(x), norm(x))
        assert torch.equal(loaded(x, x), norm(x, x))
    with pytest.raises(Exception, match="by its running statistics only"):
        torch.jit.script(nn.Sequential(nn.Identity(), norm.train()))(x)
    assert not torch.equal(norm(x), scripted(x))  # the model is as it was


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_traced_by_fx_it_is_one_call(kind: str, training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), KINDS[kind](), nn.ReLU()).train(training)
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1", "2"]
    x = torch.randn(8, 3, 2, 2)
    assert torch.equal(graph(x), model(x))
    with pytest.raises(TypeError, match="put it into a model"):
        torch.fx.symbolic_trace(KINDS[kind]())


@pytest.mark.parametrize("kind", ["layer", "none", "weight", "group"])
def test_other_kinds_traced_and_scripted(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    convert_batch_norm(model, kind, groups=2 if kind == "group" else None)
    x = torch.randn(8, 3, 2, 2)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    if kind != "weight":  # torch.jit knows no parametrisations
        torch.testing.assert_close(torch.jit.script(model.eval())(x), model(x))


def test_a_fixed_classifier_traced() -> None:
    model = nn.Sequential(nn.Linear(3, 4), FixedClassifier(4, 3))
    x = torch.randn(2, 3)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    with pytest.raises(UserError, match=r"torch\.export"):
        torch.jit.script(model)


def test_a_resnet_under_torchs_tools() -> None:
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    torch.manual_seed(0)
    plain = models.resnet18(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    expected, names = plain(x), [name for name, _ in plain.named_modules()]
    net = convert_batch_norm(plain, "ghost", ghost_size=2)
    for each in (net, fuse(copy.deepcopy(net))):
        features = extraction.create_feature_extractor(each, {"layer1.0.bn1": "a", "fc": "b"})(x)
        assert torch.equal(features["b"], expected)
        assert features["a"].shape == (2, 64, 8, 8)
        assert torch.equal(torch.jit.script(each)(x), expected)
    fused = fuse(net)
    with pytest.raises(UserError, match=r"unfuse\(model\)"):
        convert_batch_norm(copy.deepcopy(fused), "batch")
    back = unfuse(pickle.loads(pickle.dumps(fused)))
    assert [name for name, _ in back.named_modules()] == names
    convert_batch_norm(back, "batch")
    assert type(back.bn1) is nn.BatchNorm2d
    assert torch.equal(back(x), expected)
    assert list(back.state_dict()) == list(fused.state_dict())


@every_kind
def test_averaged_copied_and_moved(kind: str) -> None:
    norm, x = KINDS[kind](), torch.randn(8, 3, 2)
    norm(x)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        twin(x)
        assert not torch.equal(twin.running_var, norm.running_var)
    torch.optim.swa_utils.update_bn([x, x], norm)
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == (2 if kind == "sync" else 4)
    moved = KINDS[kind](device="meta").to_empty(device="cpu")
    moved.reset_parameters()
    assert not moved.local.any()
    torch.export.export(nn.Sequential(norm.eval()), (x,))
