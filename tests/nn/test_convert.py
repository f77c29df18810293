import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.nn import (
    GhostBatchNorm,
    NormConfig,
    SampleNorm,
    check_norm,
    convert_batch_norm,
    has_batch_norm,
    norms,
)


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 16, 5), nn.BatchNorm1d(5, affine=False),
    )  # fmt: skip


def test_there_and_back_keeps_everything():
    net = small_net().double()
    net[1].weight.requires_grad_(False)
    net[5].eval()
    net(torch.randn(4, 3, 6, 6, dtype=torch.float64))
    weight, state = net[1].weight, {k: v.clone() for k, v in net.state_dict().items()}
    ghost = convert_batch_norm(net, "ghost", ghost_size=2)
    assert ghost is net
    assert isinstance(net[1], GhostBatchNorm)
    assert net[1].weight is weight
    assert (net[1].eps, net[1].momentum) == (1e-3, 0.01)
    assert net[5].weight is None
    assert not net[5].training
    assert net[1].training
    assert net[1].running_mean.dtype == torch.float64
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    convert_batch_norm(net, "batch")
    assert [type(net[1]), type(net[5])] == [nn.BatchNorm2d, nn.BatchNorm1d]
    assert net[1].weight is weight
    assert not weight.requires_grad
    assert net[5].affine is False
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_converted_equals_chunks():
    torch.manual_seed(0)
    net, reference = small_net().double(), small_net().double()
    reference.load_state_dict(net.state_dict())
    convert_batch_norm(net, "ghost", ghost_size=4)
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    expected = torch.cat([reference(ghost) for ghost in x.split(4)])
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(dict(net.state_dict()), dict(reference.state_dict()))


def test_torchvision_resnet():
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    net = resnet18(num_classes=4)
    state = net.state_dict()
    convert_batch_norm(net, "ghost", ghost_size=2, momentum=0.3, eps=1e-4, running="averaged")
    norm = net.layer1[0].bn1
    assert (norm.momentum, norm.eps, norm.running) == (0.3, 1e-4, "averaged")
    assert sum(isinstance(m, GhostBatchNorm) for m in net.modules()) == 20
    net.load_state_dict(state, strict=True)
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    assert int(norm.num_batches_tracked) == 2


def test_every_kind_is_one_registration():
    assert {"batch", "ghost", "none"} <= set(norms.names())
    for entry in norms:
        module = entry.factory(4, NormConfig(kind=entry.name, ghost_size=2, groups=2))
        assert module(torch.randn(4, 4, 3, 3)).shape == (4, 4, 3, 3)


def test_a_bare_norm_a_shared_norm_and_other_classes():
    ghost = convert_batch_norm(nn.BatchNorm1d(3), "ghost", ghost_size=2)
    assert isinstance(ghost, GhostBatchNorm)
    shared = nn.BatchNorm1d(3)
    net = convert_batch_norm(nn.ModuleList([shared, shared]), "ghost", ghost_size=2)
    assert net[0] is net[1]
    own = convert_batch_norm(nn.Sequential(GhostBatchNorm(3, 2)), "batch")
    assert own(torch.randn(4, 3, 2)).shape == (4, 3, 2)
    assert not isinstance(own[0], GhostBatchNorm)
    assert type(convert_batch_norm(nn.BatchNorm1d(3), "none")) is nn.Identity
    assert not isinstance(convert_batch_norm(nn.SyncBatchNorm(3), "batch"), nn.SyncBatchNorm)

    class NormAndAct(nn.BatchNorm2d):
        pass

    assert isinstance(convert_batch_norm(NormAndAct(3), "batch"), NormAndAct)
    with pytest.raises(UserError, match="NormAndAct"):
        convert_batch_norm(NormAndAct(3), "ghost", ghost_size=2)


def test_a_fused_activation_is_not_lost():
    fused = GhostBatchNorm(3, 2, activation="relu")
    assert convert_batch_norm(fused, "ghost", ghost_size=4).activation == "relu"
    with pytest.raises(UserError, match="fused relu"):
        convert_batch_norm(fused, "batch")


@pytest.mark.parametrize(("kind", "groups"), [("layer", None), ("instance", None), ("group", 2)])
def test_norms_of_a_sample_there_and_back(kind, groups):
    net = small_net().double()[:5]
    net(torch.randn(4, 3, 6, 6, dtype=torch.float64))
    state, weight = {k: v.clone() for k, v in net.state_dict().items()}, net[1].weight
    net[4] = nn.BatchNorm1d(64, affine=False).double()
    convert_batch_norm(net, kind, groups=groups)
    assert type(net[1]) is type(net[4]) is SampleNorm
    assert net[1].weight is weight
    assert (net[1].eps, net[4].weight) == (1e-3, None)
    x = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    expected = {
        "layer": lambda: nn.functional.layer_norm(x, x.shape[1:], eps=1e-3),
        "instance": lambda: nn.functional.instance_norm(x, eps=1e-3),
        "group": lambda: nn.functional.group_norm(x, 2, eps=1e-3),
    }[kind]()
    torch.testing.assert_close(net[1](x), expected * weight.view(-1, 1, 1))
    net[:4].load_state_dict({k: v for k, v in state.items() if k[0] in "0123"}, strict=True)
    convert_batch_norm(net, "ghost", ghost_size=2)
    assert net[1].weight is weight
    assert net[1].running_var.dtype == torch.float64
    convert_batch_norm(net, "batch")
    assert type(net[1]) is nn.BatchNorm2d
    assert torch.equal(net[1].running_var, torch.ones(4, dtype=torch.float64))
    net[1](x)
    with pytest.raises(UserError, match="fused relu"):
        convert_batch_norm(GhostBatchNorm(4, 2, activation="relu"), kind, groups=groups)


def test_norms_of_a_sample_refuse_what_they_cannot():
    with pytest.raises(UserError, match=r"norm.groups=32: does not divide the 4 channels.*1, 2, 4"):
        convert_batch_norm(nn.BatchNorm2d(4), "group")
    with pytest.raises(UserError, match="one value in each of 4 groups"):
        convert_batch_norm(nn.BatchNorm1d(4), "instance")(torch.randn(8, 4))
    assert not has_batch_norm(convert_batch_norm(small_net(), "layer"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NormConfig(kind="gost"), "norm.kind='gost'.*did you mean 'ghost'"),
        (NormConfig(kind="ghost"), "norm.ghost_size is not set"),
        (NormConfig(kind="ghost", ghost_size=0), "norm.ghost_size=0"),
        (NormConfig(ghost_size=8), "norm.ghost_size=8: no effect with norm.kind=batch"),
        (NormConfig(kind="none", running="last"), "norm.running=last: no effect"),
        (NormConfig(kind="ghost", ghost_size=8, running="mean"), "norm.running"),
        (NormConfig(kind="layer", momentum=0.2), "norm.momentum=0.2: no effect"),
        (NormConfig(kind="layer", groups=2), "norm.groups=2: no effect with norm.kind=layer"),
        (NormConfig(kind="group", groups=0), "norm.groups=0: must be at least 1"),
        (NormConfig(momentum=1.5), "norm.momentum=1.5"),
        (NormConfig(momentum=float("nan")), "norm.momentum"),
        (NormConfig(eps=0.0), "norm.eps=0"),
    ],
)
def test_contradictions(config, message):
    with pytest.raises(UserError, match=message):
        check_norm(config)
