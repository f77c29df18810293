"""Build the data source that the config section ``data`` describes."""

from __future__ import annotations

import inspect
from dataclasses import replace

from largebatch._errors import UserError
from largebatch._registry import this_folder_last
from largebatch.data.config import DataConfig
from largebatch.data.custom import custom_source
from largebatch.data.registry import datasets
from largebatch.data.source import Source, Split
from largebatch.data.token_store import text_digest
from largebatch.data.views import ViewSource


def build_source(config: DataConfig, split: Split, num_classes: int | None = None) -> Source:
    """Build the source that ``data.name`` names.

    Args:
        config: the ``data`` section.
        split: "train" or "val".
        num_classes: ``model.num_classes`` if the config sets it. Labels are then checked against
            it, and images offer it to models. Otherwise the data set decides.

    Raises:
        UserError: the name is unknown, the data are absent or malformed.
    """
    entry = datasets.entry(config.name)
    if config.name in datasets:
        source: Source = entry.factory(config, split, num_classes)
    else:
        if (
            inspect.isclass(entry.factory)
            and not (hasattr(entry.factory, "__getitem__") and hasattr(entry.factory, "__len__"))
            and not issubclass(entry.factory, Source)
        ):
            raise UserError(
                f"data.name={config.name!r}: a class without __getitem__ and __len__, no map-style "
                "data set"
            )
        with this_folder_last():
            source = custom_source(entry.factory, config, split, num_classes)
    if num_classes is not None:
        source.widen(num_classes, config.name)
    return ViewSource(source, config) if config.augment == "views" else source


def settled(config: DataConfig) -> DataConfig:
    """Return the section with values that depend on the data filled in: the hash of a text.

    Raises:
        UserError: the text is absent.
    """
    if not datasets.entry(config.name).facts.text or config.digest is not None:
        return config
    return replace(config, digest=text_digest(config))
