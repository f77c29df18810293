"""All registries that names in a config are chosen from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from largebatch._registry import Registry
from largebatch.data import datasets
from largebatch.engine import engines
from largebatch.models import models
from largebatch.nn import norms
from largebatch.optim import optimizers
from largebatch.schedule import curves
from largebatch.tasks import tasks
from largebatch.train.config import Config

REGISTRIES: tuple[Registry[Any, Any], ...] = (
    models,
    datasets,
    optimizers,
    norms,
    curves,
    tasks,
    engines,
)


def chosen(config: Config) -> Iterator[tuple[Registry[Any, Any], str]]:
    """Yield every registry with the name that ``config`` chooses from it."""
    for registry in REGISTRIES:
        section, _, key = registry.key.partition(".")
        yield registry, getattr(getattr(config, section), key)
