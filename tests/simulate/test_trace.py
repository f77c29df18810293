"""What a model's step asks for, against counts that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, image_offers, model_of
from largebatch.nn import NormConfig
from largebatch.simulate import trace


@pytest.fixture(scope="module")
def resnet50():
    def build():
        offers = image_offers(1000, (3, 224, 224))
        return build_model(ModelConfig(name="resnet50"), NormConfig(), offers)

    return trace(build, (3, 224, 224), torch.bfloat16)


def test_resnet50_is_the_one_of_the_literature(resnet50):
    """25,557,032 parameters in 161 tensors, 4.0892 G multiplications a forward pass."""
    assert resnet50.elements == 25_557_032
    assert len(resnet50.gradients) == 161
    forward = sum(operator.flops for operator in resnet50.operators[: resnet50.forward])
    assert forward == pytest.approx(2 * 4.0892e9, rel=1e-4)
    # Backward is twice forward, but for the images' own gradient, which nobody asks for.
    first = 2 * 3 * 49 * 64 * 112 * 112
    assert resnet50.flops() == pytest.approx(3 * forward - first, rel=1e-4)


def test_gradients_become_ready_from_the_last_layer_on(resnet50):
    names = [gradient.name for gradient in resnet50.gradients]
    assert names[:2] == ["fc.bias", "fc.weight"] and names[-1] == "conv1.weight"
    ready = [gradient.after for gradient in resnet50.gradients]
    assert min(ready) > resnet50.forward and max(ready) == ready[-1] == len(resnet50.operators)
    assert ready[0] < ready[len(ready) // 2] < ready[-1]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))


def test_a_linear_layer_by_hand():
    """Forward N x 12 by 12 x 5; backward the weight's gradient alone, as large."""
    found = trace(linear, (3, 2, 2))
    products = [o for o in found.operators if o.flops]
    assert [o.flops for o in products] == [2 * 12 * 5] * 2
    forward = products[0]  # reads N x 12 and 60 weights, writes N x 5, four bytes each
    assert (forward.bytes, forward.fixed_bytes) == (4 * (12 + 5), 4 * 60)
    assert found.bytes(10) - found.bytes(9) == pytest.approx(sum(o.bytes for o in found.operators))


def test_what_autograd_keeps_is_what_it_keeps_on_real_tensors(resnet50):
    """Bytes of a sample, by the difference of two real batches on the CPU."""

    def model():
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(8 * 7 * 7, 10)),
        )

    def kept(batch):
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        real, images = model(), torch.randn(batch, 3, 16, 16)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            nn.functional.cross_entropy(real(images), torch.zeros(batch, dtype=torch.long))
        return sum(storage.nbytes() for storage in storages.values())

    assert trace(model, (3, 16, 16)).kept == (kept(4) - kept(2)) / 2
    # Of an image of ResNet-50: every convolution's and norm's input, the rectifiers' in place.
    assert 40e6 < resnet50.kept < 48e6


def test_a_frozen_weight_is_not_exchanged():
    def build():
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 5))
        model[1].requires_grad_(False)
        return model

    assert [g.name for g in trace(build, (3, 2, 2)).gradients] == ["2.bias", "2.weight"]


def test_images_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="3x5x5"):
        trace(linear, (3, 5, 5))


def test_gpt_2_is_the_one_of_the_literature():
    """124,439,808 parameters; 2 FLOPs a weight and token, and the scores of fused attention."""
    layers, width, context, vocabulary = 12, 768, 1024, 50257

    def build():
        keys = {"layers": layers, "heads": 12, "width": width}
        return model_of("gpt", keys, {"vocabulary": vocabulary, "context": context})

    found = trace(build, (context,), torch.bfloat16)
    assert found.elements == 124_439_808
    forward = sum(operator.flops for operator in found.operators[: found.forward])
    weights = layers * 12 * width**2 + vocabulary * width
    scores = layers * 2 * context * width  # of every token with every one, and their mixture
    assert forward == pytest.approx(context * 2 * (weights + scores), rel=1e-6)
    # No operator of a sample moves as much as scores of all heads would take.
    assert max(o.bytes for o in found.operators if "attention" in o.name) < 2 * 12 * context**2


def test_a_memory_and_masks_are_traced():
    def build():
        return model_of("transformer_xl", {"layers": 2}, {"vocabulary": 9, "context": 16})

    assert trace(build, (16,)).flops() > 0
