"""What waits for its time in Redis, and is held by nobody, is among what `inspect scheduled` and `query_task` tell."""

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import redis
from celery import Celery

from howl.config import Settings
from tests.helpers.support import PATIENCE, Process, eventually

W1 = "celery@w1"
#: Seconds until a task is due that a worker parks, and one that it holds.
PARKED, HELD = 3600, 50


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.fixture
def parked(start_worker: Callable[..., Process], app: Celery, client: Any, settings: Settings) -> str:
    """The id of a task that a worker has parked."""
    start_worker("w1", "--pool", "threads", "--concurrency", "1")
    sent = app.send_task("tests.add", (1,), {"b": uuid.UUID(int=7)}, countdown=PARKED, priority=3)
    eventually(lambda: client.zcard(settings.key("parked")))
    return sent.id


def _inspect(app: Celery, **options: Any) -> Any:
    """It listens until its workers have answered, not for a time."""
    return app.control.inspect(timeout=PATIENCE, limit=1, **options)


def test_a_parked_task_is_told_as_celery_tells_one_that_a_worker_holds(app: Celery, parked: str) -> None:
    held = app.send_task("tests.add", (1,), {"b": uuid.UUID(int=7)}, countdown=HELD, priority=3).id
    told = eventually(lambda: (all_ := _inspect(app).scheduled()[W1]) and len(all_) == 2 and all_)
    by_id = {entry["request"]["id"]: entry for entry in told}
    assert by_id.keys() == {parked, held}
    due = [datetime.fromisoformat(by_id[task_id].pop("eta")) for task_id in (parked, held)]
    assert abs((due[0] - due[1]).total_seconds() - (PARKED - HELD)) < PATIENCE
    assert by_id[parked]["request"].pop("id") != by_id[held]["request"].pop("id")
    assert by_id[parked] == by_id[held]

    heard: list[Any] = []
    assert _inspect(app, callback=heard.append).query_task(parked, "another") == heard[0]
    state, request = heard[0][W1].pop(parked)
    assert (state, request["name"], request["args"]) == ("scheduled", "tests.add", [1])
    assert heard == [{W1: {}}]


def test_several_workers_tell_of_a_parked_task_once_and_of_nothing_that_cannot_be_read(
    app: Celery, parked: str, client: Any, settings: Settings, start_worker: Callable[..., Process]
) -> None:
    rubbish = [b"", b"no list", b"t:q\n{", b't:q\n{"headers": 5}', b't:q\n{"headers": {"id": "a"}, "properties": 1}']
    client.zadd(settings.key("parked"), dict.fromkeys(rubbish, 1e300))
    start_worker("w2", "--pool", "threads", "--concurrency", "1")
    told = app.control.inspect(timeout=PATIENCE, limit=2).scheduled()
    assert told.keys() == {W1, "celery@w2"}
    assert [entry["request"]["id"] for all_ in told.values() for entry in all_] == [parked]
