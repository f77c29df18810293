"""model.init_from."""

import pytest
import torch
from safetensors.torch import save_file

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig

SHAPE = (3, 32, 32)


def build(seed=0, classes=10, name="cifar_resnet20", norm=None, **options):
    config = ModelConfig(name=name, **options)
    return build_model(config, norm or NormConfig(), image_offers(classes, SHAPE), seed=seed)


def save(tensors, path):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_round_trip_into_another_norm(tmp_path, prefix):
    source = build(seed=1)
    source(torch.randn(8, *SHAPE))
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = save(tensors, tmp_path / "weights.safetensors")
    model = build(seed=2, init_from=path, norm=NormConfig(kind="ghost", ghost_size=4))
    torch.testing.assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)


def test_a_torchvision_checkpoint_fits(tmp_path):
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    torch.manual_seed(0)
    source = resnet18(num_classes=10)
    tensors = {n: t for n, t in source.state_dict().items() if "num_batches" not in n}  # the oldest
    path = save(tensors, tmp_path / "resnet18.safetensors")
    model = build(name="resnet18", init_from=path, drop_path=0.1)
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(model.eval()(x), source.eval()(x))


def test_a_head_for_other_classes_starts_fresh(tmp_path):
    source = build(seed=1, classes=100)
    path = save(source.state_dict(), tmp_path / "hundred.safetensors")
    with pytest.warns(UserWarning, match="100 classes, the model 10.*classifier fc starts fresh"):
        model = build(seed=2, init_from=path)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.fc.weight, build(seed=2).fc.weight)


def without(state, name):
    del state[name]


def reshape(state, name):
    state[name] = state[name][:1]


def add(state, name):
    state[name] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (without, "layer1.0.conv1.weight", "layer1.0.conv1.weight is missing"),
        (without, "fc.bias", "fc.bias is missing"),
        (reshape, "conv1.weight", r"conv1.weight has shape \(1, 3, 3, 3\) instead of \(16, 3"),
        (reshape, "fc.weight", "fc.weight has shape"),
        (add, "fc.extra", "fc.extra is not in the model"),
    ],
)
def test_a_misfit_names_the_tensor(tmp_path, change, name, message):
    state = dict(build().state_dict())
    change(state, name)
    path = save(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=message):
        build(init_from=path)


def test_another_model_names_three_and_counts(tmp_path):
    path = save(build(name="cifar_resnet56").state_dict(), tmp_path / "deep.safetensors")
    with pytest.raises(UserError, match=r"not in the model; .* and \d+ more$"):
        build(init_from=path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        build(init_from=str(tmp_path / "absent.safetensors"))
    pickled = tmp_path / "weights.pt"
    torch.save(build().state_dict(), pickled)
    with pytest.raises(UserError, match=r"not a readable \.safetensors file"):
        build(init_from=str(pickled))
