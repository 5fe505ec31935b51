"""Loaded into a worker like a module of tasks: notes which of Celery's internals are called, where, in which order."""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.signals import heartbeat_sent
from celery.worker.consumer import Consumer
from celery.worker.control import control_command, inspect_command
from celery.worker.request import Request

from howl.backend import HowlBackend
from howl.worker.consumer.adapter import Adapter
from howl.worker.consumer.pool import slots

#: Names the file with the notes, one JSON document a line.
VARIABLE = "EAVESDROPPED"


@shared_task(name="overheard.wait")
def wait(path: str) -> str:
    """Wait for a file."""
    deadline = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "done"


@shared_task(name="overheard.parent", bind=True)
def parent(self: Any) -> str:
    """Start another task."""
    return str(self.app.send_task("tests.noop").id)


@control_command()
def lose_connection(state: Any) -> dict[str, str]:
    """Let Celery's loop see its connection break."""
    state.consumer.hub.call_soon(_break)
    return {"ok": "in a moment"}


@inspect_command()
def handed_over(state: Any) -> dict[str, Any]:
    """What the pool has been given, as howl.worker.consumer.adapter reads it, and how many runs it has room for."""
    processes = getattr(state.consumer.pool, "_pool", None)
    jobs = [job.correlation_id for job in getattr(processes, "_cache", {}).values()]
    return {"jobs": jobs, "slots": slots(state.consumer.pool)}


def _break() -> None:
    raise ConnectionResetError("as told")


def _note(what: str, **facts: Any) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), **facts}) + "\n"
    with Path(os.environ[VARIABLE]).open("a") as notes:
        notes.write(line)


def _before(owner: type, name: str, facts: Callable[..., dict[str, Any]]) -> None:
    """Note a call before it is made."""
    call = getattr(owner, name)

    @wraps(call)
    def overheard(self: Any, *args: Any, **options: Any) -> Any:
        _note(name, **facts(self, *args))
        return call(self, *args, **options)

    setattr(owner, name, overheard)


_store = HowlBackend._store_result


def _store_and_note(self: Any, task_id: str, result: Any, state: str, *args: Any, **options: Any) -> None:
    _store(self, task_id, result, state, *args, **options)
    properties = getattr(options.get("request"), "properties", None) or {}
    _note("stored", task_id=task_id, state=state, tag=properties.get("delivery_tag"))


def _note_heartbeat(**_: Any) -> None:
    _note("heartbeat_sent", thread=threading.current_thread().name)


if VARIABLE in os.environ:  # in a worker that a test has started, not in the test itself
    HowlBackend._store_result = _store_and_note
    _before(Request, "on_accepted", lambda self, pid, at: {"task_id": self.id, "child": pid, "at": at})
    _before(Request, "acknowledge", lambda self: {"task_id": self.id, "tag": self.message.delivery_tag})
    _before(Consumer, "on_close", lambda _: {})
    _before(Adapter, "attach", lambda _self, _consumer: {})
    heartbeat_sent.connect(_note_heartbeat)
