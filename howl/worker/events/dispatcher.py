"""Celery's event dispatcher replaced: sending an event is making it, and nothing that waits."""

import json
import logging
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery, bootsteps
from celery.signals import heartbeat_sent
from celery.utils.time import utcoffset
from kombu.utils.json import JSONEncoder

from howl.celery import settings_of

logger = logging.getLogger(__name__)


class EventDispatcher:
    """What Celery's worker asks of its dispatcher; its stock one publishes to Redis, a round trip an event."""

    #: Celery's loop looks after the connection of its own.
    connection = None
    #: Celery asks once, when it prepares a task; what is sent, `groups` decide from then on.
    enabled = True

    def __init__(
        self, app: Celery, node_name: str, *, tasks: bool, show: Callable[[bytes], None], beat: Callable[[], None]
    ) -> None:
        #: `worker`, and `task` while events of tasks are wanted; remote control changes it.
        self.groups = {"worker", "task"} if tasks else {"worker"}
        self._show, self._beat = show, beat
        self._clock = app.clock
        self._origin = {"hostname": node_name, "pid": os.getpid()}
        #: The same as it is written: three events a task must cost little.
        self._written = _encode(self._origin | {"utcoffset": utcoffset()})[1:-1]

    def event(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields, with all that Celery adds to make an event of them."""
        fields.update(
            self._origin, type=kind, timestamp=time.time(), utcoffset=utcoffset(), clock=self._clock.forward()
        )
        return fields

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's signature
        """Called by Celery in any thread; of the worker itself tells howl.worker.events.step, when asked here too."""
        if type == "worker-heartbeat":
            self._beat()
        elif "task" in self.groups:
            try:
                self._show(self._document(type, fields))
            except (TypeError, ValueError, RecursionError) as error:  # no reason for the task not to run
                logger.warning("Event %s of %s cannot be written: %r.", type, fields.get("uuid"), error)

    def _document(self, kind: str, fields: dict[str, Any]) -> bytes:
        """What `encode(self.event(kind, fields))` says, with no more given to the encoder than is new."""
        own = _encode(fields)[1:-1]
        # In JSON a later word replaces an earlier one, as `event` has it.
        return (
            f'{{{own}{own and ","}{self._written},"type":{_written(kind)},'
            f'"timestamp":{time.time()!r},"clock":{self._clock.forward()}}}'
        ).encode()


class Events(bootsteps.StartStopStep):
    """Stands in for Celery's own step, which is left out where events go over NATS (see EventsStep)."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        beacon = getattr(parent.controller, "howl_beacon", None)
        self.enabled = beacon is not None
        self._timer: Any = None
        if beacon is not None:
            parent.event_dispatcher = beacon.dispatcher
            # Celery's own step has been decided on by now, and the worker's banner is still to come.
            parent.controller.task_events = "task" in beacon.dispatcher.groups

    def start(self, parent: Any) -> None:
        """Celery's signal tells that its loop moves: it is sent from there."""
        if heartbeat_sent.receivers:
            interval = settings_of(parent.app).heartbeat_interval
            self._timer = parent.timer.call_repeatedly(interval, heartbeat_sent.send, (self,))

    def stop(self, parent: Any) -> None:  # noqa: ARG002  # Celery's signature
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def encode(event: dict[str, Any]) -> bytes:
    """One event as JSON; what JSON does not know is written as kombu does, or as Python shows it."""
    return _encode(event).encode()


def _as_kombu_does(value: Any) -> Any:
    try:
        return _kombu.default(value)
    except TypeError:
        return repr(value)


_kombu = JSONEncoder()
# One encoder for all: json.dumps with a `default` makes one for each event.
_encode = json.JSONEncoder(separators=(",", ":"), default=_as_kombu_does).encode


@cache
def _written(kind: str) -> str:
    """Of a few kinds, again and again."""
    return _encode(kind)
