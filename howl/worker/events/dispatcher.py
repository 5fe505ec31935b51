"""The replacement of Celery's event dispatcher: sending an event only makes it, and never waits."""

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
    """The dispatcher that Celery's worker calls; the stock one publishes to Redis, a round trip an event."""

    #: Celery's loop checks its dispatcher's connection; here there is none to check.
    connection = None
    #: Celery reads this once, when it prepares a task; from then on `groups` decides what is sent.
    enabled = True

    def __init__(
        self, app: Celery, node_name: str, *, tasks: bool, show: Callable[[bytes], None], beat: Callable[[], None]
    ) -> None:
        #: `worker`, and `task` while events of tasks are wanted; remote control changes it.
        self.groups = {"worker", "task"} if tasks else {"worker"}
        self._show, self._beat = show, beat
        self._clock = app.clock
        self._origin = {"hostname": node_name, "pid": os.getpid()}
        #: The same as JSON: three events a task must cost little.
        self._written = _encode(self._origin | {"utcoffset": utcoffset()})[1:-1]

    def event(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields, with all that Celery adds to make an event of them."""
        fields.update(
            self._origin, type=kind, timestamp=time.time(), utcoffset=utcoffset(), clock=self._clock.forward()
        )
        return fields

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's signature
        """Send a task's event, in any thread of Celery's; heartbeats are left to howl.worker.events.step."""
        if type == "worker-heartbeat":
            self._beat()
        elif "task" in self.groups:
            try:
                self._show(self._document(type, fields))
            except (TypeError, ValueError, RecursionError) as error:  # no reason for the task not to run
                logger.warning("Event %s of %s cannot be written: %r.", type, fields.get("uuid"), error)

    def _document(self, kind: str, fields: dict[str, Any]) -> bytes:
        """Return what `encode(self.event(kind, fields))` would, but give the encoder only what is new."""
        own = _encode(fields)[1:-1]
        # In JSON a later key replaces an earlier one, as in `event`.
        return (
            f'{{{own}{own and ","}{self._written},"type":{_written(kind)},'
            f'"timestamp":{time.time()!r},"clock":{self._clock.forward()}}}'
        ).encode()


class Events(bootsteps.StartStopStep):
    """The stand-in for Celery's own step, which is left out where events go over NATS (see EventsStep)."""

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
        """Have Celery's loop send `heartbeat_sent`, which tells its receivers that the loop moves."""
        if heartbeat_sent.receivers:
            interval = settings_of(parent.app).heartbeat_interval
            self._timer = parent.timer.call_repeatedly(interval, heartbeat_sent.send, (self,))

    def stop(self, parent: Any) -> None:  # noqa: ARG002  # Celery's signature
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def encode(event: dict[str, Any]) -> bytes:
    """Return one event as JSON; what JSON does not know is written as kombu does, or as its `repr`."""
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
    """Return a kind as JSON; there are only a few, used again and again."""
    return _encode(kind)
