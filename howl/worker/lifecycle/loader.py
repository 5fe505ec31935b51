"""Celery's loader, which imports the task modules and whose hooks report that a run begins and has ended.

These hooks cost a tenth of what signals do.
"""

import importlib
from types import ModuleType
from typing import Any

from celery import Celery, Task
from celery.loaders.app import AppLoader
from celery.loaders.base import BaseLoader

from howl.errors import NotConfigured
from howl.worker.task import reporter


class Runs(BaseLoader):
    """A mixin that gives every run of a worker its sight, beside what the loader it is mixed into does."""

    def on_task_init(self, task_id: str, task: Task) -> None:
        super().on_task_init(task_id, task)
        # A task that is applied eagerly is a part of the run that does so.
        if not (request := task.request).is_eager:
            reporter.begin(self.app.howl_show, task_id, request.hostname)

    def on_process_cleanup(self) -> None:
        """End a run's sight; Celery calls this for runs alone, in their process and thread."""
        super().on_process_cleanup()
        reporter.end()


def hear_of_runs(app: Celery) -> None:
    """Mix `Runs` into the loader of this worker's application, whichever it is; a second call changes nothing."""
    loader = app.loader
    if not isinstance(loader, Runs):
        loader.__class__ = type(type(loader).__name__, (Runs, type(loader)), {})


class Loader(AppLoader):
    """The loader of HOWL's own application."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> ModuleType:  # noqa: ARG002  # Celery's signature
        """Import a module from where Python looks for modules, as any import does.

        Celery's own puts the working directory first, and not for the task module alone but for all that is imported
        with it: a file `httpx.py` that was downloaded there would run in place of the library.
        Raises NotConfigured if there is no such module.
        """
        try:
            return importlib.import_module(module, package)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # a module that it imports itself
            raise NotConfigured(
                f"The task module {module} (HOWL_TASK_MODULES) is not installed, and not in PYTHONPATH: the working "
                "directory is not searched, so `PYTHONPATH=/folder/of/it howl …` says where it is."
            ) from None
