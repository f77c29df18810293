"""The tasks a config can name.

A factory is called with the ``task`` section and with what its signature names of the data's offers
(``num_classes``, ``vocabulary``, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from largebatch._errors import UserError, raised
from largebatch._registry import Registry, named_by, this_folder_last
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.task import Task

tasks: Registry[Callable[..., Task[Any]]] = Registry("task.name", importable=True)


def build_task(config: TaskConfig, offers: Mapping[str, Any]) -> Task[Any]:
    """Return the task that ``config.name`` names.

    Args:
        offers: of the data, see :meth:`largebatch.data.Source.offers`.

    Raises:
        UserError: there is no such task, or the data do not offer what it needs.
    """
    factory, theirs = tasks.entry(config.name).factory, tasks.imports(config.name)
    where = f"task.name={config.name!r}"
    try:
        given = named_by(factory, {"config": config, **offers})
    except UserError as error:
        raise UserError(f"{where}: these data are not for it: {error}") from None
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
