"""What a server lost is made anew by a `howl server` that goes on, and what is gone is shown as gone."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from celery import Celery
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError
from sqlalchemy import select

from howl.artifacts import store
from howl.config import Settings
from howl.connections import postgres
from howl.connections.nats import Connection, events_stream
from howl.connections.redis import redis_client
from howl.doctor.examine import run as examine
from howl.doctor.finding import Finding, Verdict
from howl.embedded.stack import Stack
from howl.models import Artifact
from howl.server_requests import stream_name
from tests.conftest import TEMPLATE, _dropped, _execute
from tests.helpers.support import PATIENCE, Process, eventually, taken_away

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("patient_doctor")]

TASKS = {"HOWL_TASK_MODULES": "tests.tasks,tests.helpers.ending_tasks"}


def on_jetstream(settings: Settings, act: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
    async def connected() -> Any:
        client = await Connection().open(settings, "test")
        try:
            return await act(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(connected())


def streams(settings: Settings) -> tuple[str, ...]:
    prefix = settings.subject_prefix
    return events_stream(prefix), stream_name(prefix), store.stream_name(store.bucket(prefix))


def doctor(settings: Settings, server: str, check: str) -> Finding | None:
    return next((each for each in examine(settings) if (each.server, each.check) == (server, check)), None)


def statuses(settings: Settings) -> dict[str, str]:
    with postgres.session(settings.database()) as session:
        return {row.name: row.status for row in session.scalars(select(Artifact))}


def leave(app: Celery, name: str) -> None:
    app.send_task("endings.leave_bytes", (name, 10)).get(timeout=PATIENCE)


def beats(worker_row: Any, name: str = "w1") -> Any:
    """When the worker was last heard."""
    row = worker_row(name)
    return row and row.last_heartbeat_at


def test_whatever_a_server_has_lost_is_made_anew_while_everything_runs(
    settings: Settings, stack: Stack, server: Process, start_worker: Any, app: Celery, worker_row: Any,
    subtests: pytest.Subtests,
) -> None:  # fmt: skip
    worker = start_worker(env=TASKS)
    leave(app, "before")
    eventually(lambda: statuses(settings) == {"before": "kept"})
    assert doctor(settings, "postgresql", "files") is None
    with subtests.test("NATS's whole store: files that are gone are not shown as kept"):
        with taken_away(stack.nats):
            shutil.rmtree(stack.nats.folder / "jetstream")
        eventually(lambda: statuses(settings) == {"before": "missing"})
        found = doctor(settings, "postgresql", "files")
        assert found is not None
        assert (found.verdict, found.said) == (Verdict.WARNING, "1 files are recorded, and NATS does not have them")
        works_on(settings, app, worker_row, "after")
    with subtests.test("NATS's streams"):
        on_jetstream(settings, delete_streams(settings))
        works_on(settings, app, worker_row, "without streams")
        eventually(lambda: on_jetstream(settings, are_there(settings)))
    with subtests.test("their readers"):
        on_jetstream(settings, delete_readers(settings))
        works_on(settings, app, worker_row, "without readers")
    with subtests.test("all of Redis, scripts included"):
        with redis_client(settings) as client:
            for key in client.scan_iter(settings.key("*"), count=1000):  # other namespaces' are theirs
                client.delete(key)
            client.script_flush()
        results = [app.send_task("tests.add", (number, 1)) for number in range(20)]
        assert [each.get(timeout=PATIENCE) for each in results] == [number + 1 for number in range(20)]
    with subtests.test("the whole record, put back as it was long ago"):
        put_back(settings, stack)
        assert app.send_task("tests.add", (2, 2)).get(timeout=PATIENCE) == 4
        works_on(settings, app, worker_row, "in the new record")
    app.control.broadcast("howl_drain")
    assert worker.wait() == 0


def works_on(settings: Settings, app: Celery, worker_row: Any, name: str) -> None:
    """A task leaves a file of that name, which is kept, and the worker is heard."""
    heard = beats(worker_row)
    leave(app, name)
    eventually(lambda: statuses(settings).get(name) == "kept")
    eventually(lambda: (now := beats(worker_row)) and (heard is None or now > heard))


def are_there(settings: Settings) -> Callable[[JetStreamContext], Awaitable[bool]]:
    async def look(stream: JetStreamContext) -> bool:
        try:
            return all([await stream.stream_info(name) for name in streams(settings)])
        except NotFoundError:
            return False

    return look


def delete_streams(settings: Settings) -> Callable[[JetStreamContext], Awaitable[None]]:
    async def delete(stream: JetStreamContext) -> None:
        for name in streams(settings):
            await stream.delete_stream(name)

    return delete


def delete_readers(settings: Settings) -> Callable[[JetStreamContext], Awaitable[None]]:
    async def delete(stream: JetStreamContext) -> None:
        for name in streams(settings)[:2]:
            for reader in await stream.consumers_info(name):
                await stream.delete_consumer(name, reader.name)

    return delete


def put_back(settings: Settings, stack: Stack) -> None:
    name = settings.database().rpartition("/")[2]
    eventually(lambda: _dropped(stack, name))
    _execute(stack.urls.database_url, "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, TEMPLATE)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["events", "questions", "files"])
def test_the_doctor_names_a_stream_that_is_not_there(place: int, settings: Settings) -> None:
    names = [*streams(settings)]
    missing = names.pop(place)

    async def make(stream: JetStreamContext) -> None:
        for name in names:
            await stream.add_stream(StreamConfig(name=name, subjects=[f"{settings.subject_prefix}.{name}.>"]))

    assert doctor(settings, "nats", "streams") is None
    on_jetstream(settings, make)
    found = doctor(settings, "nats", "streams")
    assert found is not None
    assert (found.verdict, found.said) == (Verdict.WARNING, f"the stream {missing} is not there")
