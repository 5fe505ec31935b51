"""Purging is an end like any other: the record says so, nothing comes back, and nothing is lost on the way."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from howl.broker.purge import purge
from howl.broker.scripts import PURGE
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.submission import PRIORITY_SUFFIXES, TaskRequest, submit
from tests.helpers.support import eventually, run_program

CELERY = str(Path(sys.executable).with_name("celery"))
AHEAD = timedelta(hours=1)


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis_client(settings) as made:
        yield made


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """A server that soon looks for what Redis has lost."""
    return env | {"HOWL_PUSH_AGAIN_AFTER": "1"}


def lists(queue: str = "celery") -> list[str]:
    return [f"{queue}{suffix}" for suffix in PRIORITY_SUFFIXES]


def message(number: int | str, **headers: Any) -> bytes:
    return json.dumps({"body": "x" * 100, "headers": {"id": f"task-{number}", "task": "tests.add"} | headers}).encode()


def outcomes(client: Any, settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(fields[b"outcome"]) for _, fields in client.xrange(settings.key("outcomes"))]


def run_purge(env: dict[str, str], *options: str) -> str:
    return run_program([CELERY, "-A", "howl", "purge", "-f", *options], env, check=True).stdout


def test_what_is_purged_is_cancelled_on_record_and_never_pushed_again(
    env: dict[str, str], start: Any, session: Session, app: Celery, client: Any, settings: Settings, task_row: Any
) -> None:
    submitted = [submit(TaskRequest(name="tests.add", args=[1, 1], priority=priority), session, app)
                 for priority in (None, 0, 3, 6, 9)]  # fmt: skip
    plain = [app.send_task("tests.add", (1, 1)).id, app.send_task("tests.add", (1, 1), retries=7).id]
    assert "Purged 7 messages" in run_purge(env)
    start("server", env=env)
    purged = (*submitted, *plain)
    eventually(lambda: all((row := task_row(task_id)) and row.finished_at for task_id in purged))
    rows = [task_row(task_id) for task_id in purged]
    assert {(row.status, row.error_message, row.name) for row in rows} == {("cancelled", "purged", "tests.add")}
    assert rows[-1].attempts == 8
    eventually(lambda: client.hlen(settings.key("inflight")) == 0)
    # One that Redis lost shows that the keeper has looked.
    lost = submit(TaskRequest(name="tests.add", args=[1, 1]), session, app)
    client.delete(settings.key("celery"), settings.key("inflight"))
    eventually(lambda: client.llen(settings.key("celery")))
    (raw,) = [raw for name in lists() for raw in client.lrange(settings.key(name), 0, -1)]
    assert json.loads(raw)["headers"]["id"] == lost


def test_only_the_queues_that_are_named_are_purged(
    env: dict[str, str], app: Celery, client: Any, settings: Settings
) -> None:
    app.send_task("tests.add", (1, 1), queue="celery")
    app.send_task("tests.add", (1, 1), queue="celery2")
    run_purge(env, "-Q", "celery")
    assert [client.llen(settings.key(name)) for name in ("celery", "celery2")] == [0, 1]
    assert len(outcomes(client, settings)) == 1


def test_what_is_parked_of_the_queue_is_purged_too(client: Any, settings: Settings) -> None:
    parked = settings.key("parked")
    due = (datetime.now(UTC) + AHEAD).timestamp() * 1000
    for number, name in enumerate((*lists("q"), "q2", "a q")):
        client.zadd(parked, {settings.key(name).encode() + b"\n" + message(number): due})
    assert purge(client, settings.key_prefix, lists("q")) == 4
    assert [claim.partition(b"\n")[0] for claim in client.zrange(parked, 0, -1)] == [
        settings.key(name).encode() for name in ("a q", "q2")
    ]
    assert sorted(end["task_id"] for end in outcomes(client, settings)) == [f"task-{number}" for number in range(4)]


def test_a_message_is_in_its_queue_or_ended_at_every_instant(client: Any, settings: Settings) -> None:
    number = 3000
    client.lpush(settings.key("q"), *(message(each) for each in range(number)))
    purging = threading.Thread(target=purge, args=(client, settings.key_prefix, lists("q")))
    purging.start()
    seen = []
    with redis_client(settings) as other:
        while not seen or seen[-1][0]:
            with other.pipeline(transaction=True) as together:
                seen.append(tuple(together.llen(settings.key("q")).xlen(settings.key("outcomes")).execute()))
    purging.join()
    assert {waiting + ended for waiting, ended in seen} == {number}
    assert len(set(seen)) > 2, "nothing was seen of it"
    assert {end["task_id"] for end in outcomes(client, settings)} == {f"task-{each}" for each in range(number)}


def test_what_a_worker_took_in_the_meantime_is_left_alone(client: Any, settings: Settings) -> None:
    client.lpush(settings.key("q"), message(1), message(2))
    client.rpop(settings.key("q"))
    keys = [settings.key("q"), settings.key("outcomes")]
    assert PURGE.run(client, keys, [100, message(1), b"one", message(2), b"two"]) == 1
    assert [fields[b"outcome"] for _, fields in client.xrange(settings.key("outcomes"))] == [b"two"]


def test_what_names_its_task_in_its_body_is_purged_as_that(client: Any, settings: Settings) -> None:
    """As Celery's first protocol does, plainly or in base64."""
    body = json.dumps({"id": "task-1", "task": "tests.add", "retries": 2}).encode()
    plain = {"body": body.decode(), "headers": {}, "properties": {}}
    coded = {"body": base64.b64encode(body).decode(), "headers": None, "properties": {"body_encoding": "base64"}}
    client.lpush(settings.key("q"), json.dumps(plain), json.dumps(coded))
    assert purge(client, settings.key_prefix, lists("q")) == 2
    assert [(end["task_id"], end["name"], end["attempt"]) for end in outcomes(client, settings)] == [
        ("task-1", "tests.add", 3)
    ] * 2


@pytest.mark.parametrize("raw", [b"\xff", b"[]", b"{}", b'{"headers": ["id"]}', message(1, id=7), message(1, id=""),
                                 message(1, id="\x00"), b"[" * 5000])  # fmt: skip
def test_what_names_no_task_is_purged_without_an_outcome(raw: bytes, client: Any, settings: Settings) -> None:
    client.lpush(settings.key("q"), message(1), raw, message(2))
    assert purge(client, settings.key_prefix, lists("q")) == 3
    assert [end["task_id"] for end in outcomes(client, settings)] == ["task-1", "task-2"]


def test_control_purges_as_well(app: Celery, client: Any, settings: Settings) -> None:
    sent = app.send_task("tests.add", (1, 1))
    assert app.control.purge() == 1
    assert [end["task_id"] for end in outcomes(client, settings)] == [sent.id]
