"""A worker's pulse: a file that is touched while its loop moves, for a container's health check."""

from typing import Any

from celery import bootsteps

from howl.celery import settings_of


class Pulse(bootsteps.StartStopStep):
    """The step that touches the file once a heartbeat. It asks no server: without Redis a worker is well, and waits."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.settings = settings_of(parent.app)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        file = self.settings.pulse_file
        if file is not None:
            file.touch()
            self._timer = parent.timer.call_repeatedly(self.settings.heartbeat_interval, file.touch)

    def stop(self, parent: Any) -> None:  # noqa: ARG002  # Celery's signature
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
