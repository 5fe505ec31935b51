"""Celery's loader: it imports task modules, and by it we hear that a run begins and has ended.

Its hooks for the latter cost a tenth of what signals do.
"""

import importlib
from types import ModuleType
from typing import Any

from celery import Task
from celery.loaders.app import AppLoader

from howl.errors import NotConfigured
from howl.worker import sight


class Loader(AppLoader):
    """Of every application of HOWL's; in a worker, every run is given its sight."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> ModuleType:  # noqa: ARG002  # Celery's signature
        """Import a module from where Python looks for modules, as any import does.

        Celery's own puts the working directory first, and not for the task module alone but for all that is imported
        with it: a file `httpx.py` that was downloaded there would run, in the place of the library.
        Raises NotConfigured where there is none.
        """
        try:
            return importlib.import_module(module, package)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # one that it imports itself
            raise NotConfigured(
                f"The task module {module} (HOWL_TASK_MODULES) is not installed, and not in PYTHONPATH: the working "
                "directory is not searched, so `PYTHONPATH=/folder/of/it howl …` says where it is."
            ) from None

    def on_task_init(self, task_id: str, task: Task) -> None:
        show = getattr(self.app, "howl_show", None)
        # A task that is applied on the spot is a part of the run that does so.
        if show is not None and not (request := task.request).is_eager:
            sight.begin(show, task_id, request.hostname)

    def on_process_cleanup(self) -> None:
        """Celery calls this for runs alone, in their process and thread."""
        sight.end()
