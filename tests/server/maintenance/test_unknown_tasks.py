"""A task that the worker which takes it does not know: it goes back for one that does, and fails where nobody does."""

import json
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import update

from howl.broker.namespaces import namespace_of
from howl.broker.scripts import OFFER
from howl.config import Settings
from howl.connections import postgres
from howl.models import Worker
from howl.server.maintenance import unknown_tasks
from tests.helpers.support import eventually

#: Knows nothing of tests.tasks.
STRANGER = {"HOWL_TASK_MODULES": "tests.helpers.ending_tasks"}


def test_a_task_that_one_worker_does_not_know_runs_on_another_that_does(
    server, start_worker, app, task_row, worker_row
):
    # First the one that knows it: while a queue has only workers that do not, its tasks fail.
    start_worker("w1")
    eventually(lambda: (row := worker_row("w1")) and row.tasks)
    stranger = start_worker("stranger", env=STRANGER)
    sent: list[str] = []

    def stranger_took_one() -> bool:
        sent.extend(app.send_task("tests.add", (number, 1)).id for number in range(4))
        return "does not know the task 'tests.add'" in stranger.output

    eventually(stranger_took_one)
    for position, task_id in enumerate(sent):
        row = eventually(lambda task_id=task_id: (row := task_row(task_id)) and row.finished_at and row)
        assert (row.status, row.worker_id, row.result) == ("succeeded", "w1", position % 4 + 1)


def test_a_task_that_no_worker_knows_fails_as_celery_fails_it(server, start_worker, app, task_row, worker_row):
    start_worker("w1")
    assert "tests.add" in eventually(lambda: (row := worker_row("w1")) and row.tasks)
    assert not [name for name in worker_row("w1").tasks if name.startswith("celery.")]
    sent = app.send_task("tests.nobody_knows", countdown=1)
    row = eventually(lambda: (row := task_row(sent.id)) and row.finished_at and row)
    assert (row.status, row.error_type) == ("failed", "celery.exceptions.NotRegistered")


def test_a_worker_that_no_nats_tells_of_fails_what_it_does_not_know(server, start_worker, app, task_row):
    start_worker("w1", env={"HOWL_NATS_URL": ""})
    sent = app.send_task("tests.nobody_knows")
    row = eventually(lambda: (row := task_row(sent.id)) and row.finished_at and row)
    assert row.error_type == "celery.exceptions.NotRegistered"


# --- what the server decides ---------------------------------------------------------------------------------------


def workers(settings: Settings, **tasks: list[str] | None) -> None:
    """Workers of the default queue that are there, and what each knows."""
    with postgres.session(settings.database()) as opened:
        for name, known in tasks.items():
            opened.add(Worker(worker_id=name, queues=["celery"], tasks=known, credential="anyone"))


def message(task: str) -> bytes:
    return json.dumps({"headers": {"id": "1", "task": task}, "properties": {}, "body": ""}).encode()


def left(app: Celery, settings: Settings, *documents: bytes) -> Any:
    """Redis, with these messages in `unknown`, and what the server does about it done."""
    client, name = app.backend.redis, settings.key("celery").encode()
    client.zadd(namespace_of(settings).key("unknown"), {name + b"\n" + document: 1 for document in documents})
    unknown_tasks.put_back(client, settings)
    return client


ADD = message("tests.add")


#: What the workers of the queue have said that they know, and what is on the queue then.
CASES: dict[str, tuple[dict[str, list[str] | None], list[bytes]]] = {
    "somebody knows it": ({"w1": ["a"], "w2": ["a", "tests.add"]}, [ADD]),
    "nobody knows it": ({"w1": ["a"], "w2": []}, [ADD + b"\n"]),
    "one has not said": ({"w1": ["a"], "w2": None}, []),
    "one has not said, another knows it": ({"w1": None, "w2": ["tests.add"]}, [ADD]),
    "nobody is there": ({}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_back_when_all_is_said(case: str, app: Celery, settings: Settings) -> None:
    known, queued = CASES[case]
    workers(settings, **known)
    client = left(app, settings, ADD)
    assert client.lrange(settings.key("celery"), 0, -1) == queued
    assert client.zcard(namespace_of(settings).key("unknown")) == (not queued)
    assert client.llen(settings.key("doorbell:celery")) == len(queued)


def test_workers_that_are_gone_or_serve_another_queue_are_not_asked(app: Celery, settings: Settings) -> None:
    workers(settings, w1=["tests.add"], w2=["tests.add"], w3=[])
    with postgres.session(settings.database()) as opened:
        opened.execute(update(Worker).where(Worker.worker_id == "w1").values(status="lost"))
        opened.execute(update(Worker).where(Worker.worker_id == "w2").values(queues=["other"]))
    assert left(app, settings, ADD).lrange(settings.key("celery"), 0, -1) == [ADD + b"\n"]


def test_who_does_not_reach_the_queue_is_not_asked(app: Celery, settings: Settings) -> None:
    workers(settings, w1=[])
    client, thief = app.backend.redis, f"{settings.subject_prefix}-thief"
    with postgres.session(settings.database()) as opened:
        for name, known in (("t1", ["tests.add"]), ("t2", None)):
            opened.add(Worker(worker_id=name, queues=["celery"], tasks=known, credential=thief))
    client.acl_setuser(thief, enabled=True, keys=["elsewhere"], commands=["+lpush"])
    try:
        assert left(app, settings, ADD).lrange(settings.key("celery"), 0, -1) == [ADD + b"\n"]
    finally:
        client.acl_deluser(thief)


def test_what_makes_no_sense_there_holds_up_no_other(app: Celery, settings: Settings) -> None:
    workers(settings, w1=["tests.add"])
    client, namespace = app.backend.redis, namespace_of(settings)
    strange = {b"no list": 1, b"\xff\n" + ADD: 1, settings.key("outcomes").encode() + b"\n" + ADD: 1}
    client.zadd(
        namespace.key("unknown"), strange | {settings.key("\udcff").encode(errors="replace") + b"\xff\n" + ADD: 1}
    )
    unstorable = [
        message("a\0b"),
        message("\ud800"),
        message("x" * 300),
        message("tests.add").replace(b'"tests.add"', b"[]"),
    ]
    client = left(app, settings, b"nonsense", *unstorable, ADD)
    wanted = {ADD, *(document + b"\n" for document in (b"nonsense", *unstorable))}
    assert set(client.lrange(settings.key("celery"), 0, -1)) == wanted
    assert client.llen(settings.key("unreadable")) == 3


def test_two_servers_put_it_back_once(app: Celery, settings: Settings) -> None:
    workers(settings, w1=["tests.add"])
    claim = settings.key("celery").encode() + b"\n" + ADD
    client = app.backend.redis
    keys = [namespace_of(settings).key("unknown"), settings.key("celery"), settings.key("doorbell:celery")]
    client.zadd(keys[0], {claim: 1})
    assert [OFFER.run(client, keys, [claim, ADD]) for _ in range(2)] == [1, 0]
    assert client.lrange(settings.key("celery"), 0, -1) == [ADD]
