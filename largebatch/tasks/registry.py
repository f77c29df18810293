"""The registry of tasks, from which ``task.name`` chooses.

A factory is called with the ``task`` section, and with the data's offers (``num_classes``,
``vocabulary``, ...) that its signature names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from inspect import isclass
from typing import Any, get_type_hints

from largebatch._errors import UserError, raised
from largebatch._registry import Facts, Registry, named_by, this_folder_last
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.task import Task


@dataclass(frozen=True)
class TaskFacts(Facts):
    """Facts about a task that the rest of the package needs.

    Attributes:
        config: dataclass of the ``task`` section's keys.
    """

    config: type[TaskConfig] = TaskConfig

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
        own = [f"task.{each.name}" for each in fields(self.config) if each.name != "name"]
        yield f"keys of its own: {', '.join(own) or 'none'}"


def _said(factory: Any) -> TaskFacts:
    """Return the facts of a task's class: its attribute ``config``."""
    return TaskFacts(getattr(factory, "config", TaskConfig))


tasks: Registry[Callable[..., Task[Any]], TaskFacts] = Registry("task.name", _said, importable=True)


def config_of(name: str) -> type[TaskConfig]:
    """Return the dataclass of the ``task`` section's keys under ``task.name=name``.

    Raises:
        UserError: there is no such task, or its ``config`` is not a suitable dataclass.
    """
    kind = tasks.entry(name).facts.config
    if not (isclass(kind) and issubclass(kind, TaskConfig) and is_dataclass(kind)):
        raise UserError(
            f"task.name={name!r}: its attribute config is no dataclass derived from "
            "largebatch.tasks.TaskConfig"
        )
    try:
        get_type_hints(kind)
        kind()
    except Exception as error:
        raise UserError(
            f"task.name={name!r}: config {kind.__name__}: each key needs a type and a default: "
            f"{raised(error)}"
        ) from error
    return kind


def default_config() -> TaskConfig:
    """Return the default ``task`` section."""
    return config_of(TaskConfig.name)()


def check_task(config: TaskConfig) -> None:
    """Check a ``task`` section, as far as possible without the data.

    Raises:
        UserError: the message names the key, or gives the error of a user's check.
    """
    try:
        config.check()
    except UserError:
        raise
    except Exception as error:
        if not tasks.imports(config.name):
            raise
        raise UserError(f"task.name={config.name!r}: to check it raised {raised(error)}") from error


def build_task(config: TaskConfig, offers: Mapping[str, Any]) -> Task[Any]:
    """Return the task that ``config.name`` names.

    Args:
        offers: the data's offers, see :meth:`largebatch.data.Source.offers`.

    Raises:
        UserError: there is no such task, or the data do not offer what it needs.
    """
    factory, theirs = tasks.entry(config.name).factory, tasks.imports(config.name)
    where = f"task.name={config.name!r}"
    try:
        given = named_by(factory, {"config": config, **offers})
    except UserError as error:
        raise UserError(f"{where}: these data are not for it: {error}") from None
    if "views" in offers and "views" not in given:
        raise UserError(f"data.augment=views: {where} takes images as they are")
    try:
        with this_folder_last() if theirs else nullcontext():
            task = factory(**given)
    except UserError:
        raise
    except Exception as error:
        if not theirs:
            raise
        raise UserError(f"{where}: to make it raised {raised(error)}") from error
    if not isinstance(task, Task):
        raise UserError(f"{where}: returned a {type(task).__name__}, not a largebatch.tasks.Task")
    return task
