"""Models by name: convolutional networks, residual networks and transformers.

``model.name`` in a config chooses one; each file adds its models to the registry.
"""

# The order of `largebatch explain` and of error messages is the order of these imports.
from largebatch.models import (  # noqa: F401
    adam_cnn,
    alexnet,
    bert,
    cifar_resnet,
    densenet,
    digits_cnn,
    f1,
    f2,
    gpt,
    keskar_deep,
    linear,
    nf_resnet,
    nfnet,
    resnet,
    shallow,
    shufflenet,
    transformer_xl,
    vgg,
    wide_resnet,
)
from largebatch.models.build import build_model, model_of
from largebatch.models.config import ModelConfig
from largebatch.models.init import initialize
from largebatch.models.projected import Projected
from largebatch.models.registry import image_offers, models
from largebatch.models.swapped import swapped_in
from largebatch.models.trial import as_before, try_images, try_training
from largebatch.models.weights import load_weights

__all__ = [
    "ModelConfig",
    "Projected",
    "as_before",
    "build_model",
    "image_offers",
    "initialize",
    "load_weights",
    "model_of",
    "models",
    "swapped_in",
    "try_images",
    "try_training",
]
