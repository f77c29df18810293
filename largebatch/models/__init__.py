"""Models by name; each file registers its own."""

from largebatch.models import (
    cifar_resnet,
    digits_cnn,
    f1,
    nf_resnet,
    resnet,
    shallow,
    vgg,
    wide_resnet,
)
from largebatch.models.build import build_model
from largebatch.models.config import ModelConfig
from largebatch.models.init import initialize
from largebatch.models.registry import models
from largebatch.models.trial import try_images
from largebatch.models.weights import load_weights

__all__ = ["ModelConfig", "build_model", "initialize", "load_weights", "models", "try_images"]

# The order of `largebatch explain` and of error messages is the order of the imports above.
_REGISTERED = (cifar_resnet, digits_cnn, f1, nf_resnet, resnet, shallow, vgg, wide_resnet)
