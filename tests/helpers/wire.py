"""A worker's side of the wire, as a test speaks it: events in Celery's form, published over NATS."""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import nats
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NoStreamResponseError

from howl.config import Settings
from howl.server.bridge.events import Letter
from tests.helpers.support import PATIENCE

Event = dict[str, Any]
#: Of the workers that speak here.
CREDENTIAL = "crew"


def task(kind: str, uuid: str, worker_id: str = "w1", **given: Any) -> Event:
    own: Event = {"name": "tests.noop", "args": "()", "kwargs": "{}", "retries": 0} if kind == "received" else {}
    return _event(f"task-{kind}", worker_id) | {"uuid": uuid} | own | given


def worker(kind: str, worker_id: str = "w1", **described: Any) -> Event:
    status = "offline" if kind == "offline" else "active"
    said = {"worker_id": worker_id, "boot_id": "b", "status": status} | described
    return _event(f"worker-{kind}", worker_id) | {"freq": 5.0, "active": 0, "processed": 0, "worker": said}


def _event(kind: str, worker_id: str) -> Event:
    # A worker's Lamport clock and hours from UTC are its own affair.
    told = {"timestamp": time.time(), "utcoffset": 7, "pid": 17, "clock": 2**40}
    return {"type": kind, "hostname": f"celery@{worker_id}"} | told


def letter(settings: Settings, *events: Any, worker_id: str = "w1", sequence: int = 1, **given: Any) -> Letter:
    """What the bridge reads of a message."""
    subject = f"{settings.subject_prefix}.events.{CREDENTIAL}"
    taken = given.pop("taken", time.time())
    whole = Letter(subject, json.dumps(events).encode(), repr(time.time()), int(taken * 1e9), sequence)
    return whole._replace(**given)


def publish(settings: Settings, *messages: Iterable[Event] | bytes, worker_id: str = "w1", clock: float = 0.0) -> None:
    """Messages, each once; returns when NATS has stored them. `clock`: seconds by which the worker's is wrong."""
    asyncio.run(_publish(settings, messages, worker_id, clock))


async def _publish(
    settings: Settings, messages: Iterable[Iterable[Event] | bytes], worker_id: str, clock: float
) -> None:
    client = await nats.connect(settings.nats())
    subject = f"{settings.subject_prefix}.events.{CREDENTIAL}"
    try:
        for number, message in enumerate(messages):
            data = message if isinstance(message, bytes) else json.dumps(list(message)).encode()
            await stored(client.jetstream(), subject, data, f"{time.time_ns()}-{number}", clock)
    finally:
        await client.close()


async def stored(stream: JetStreamContext, subject: str, data: bytes, message_id: str, clock: float = 0.0) -> None:
    """Repeated until NATS says that it has it, which tells a repetition by the message's id.

    The bridge makes its stream a moment after the server says that it is up.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        headers = {"Howl-Sent": repr(time.time() + clock), "Nats-Msg-Id": message_id}
        try:
            await stream.publish(subject, data, timeout=3, headers=headers)
        except (NoStreamResponseError, NatsError, TimeoutError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        else:
            return
