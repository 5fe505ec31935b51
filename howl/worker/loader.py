"""Celery's loader, by which we hear that a run begins and has ended: its hooks cost a tenth of what signals do."""

from celery import Task
from celery.loaders.app import AppLoader

from howl.worker import sight


class Loader(AppLoader):
    """Named by the application; in a worker, every run is given its sight."""

    def on_task_init(self, task_id: str, task: Task) -> None:
        show = getattr(self.app, "howl_show", None)
        # A task that is applied on the spot is a part of the run that does so.
        if show is not None and not (request := task.request).is_eager:
            sight.begin(show, task_id, request.hostname)

    def on_process_cleanup(self) -> None:
        """Celery calls this for runs alone, in their process and thread."""
        sight.end()
