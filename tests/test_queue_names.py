"""No queue is called like a key of ours, wherever its name comes from."""

import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from howl.bursts.admission import LeaveRequest
from howl.bursts.request import BurstRequest
from howl.cli import main
from howl.config import Settings, load_settings
from howl.connections.redis import redis_client
from howl.errors import InvalidRequest, SettingsError
from howl.models import Task
from howl.queue_names import ITS_OWN
from howl.server.maintenance import lease_reaper as keeping
from howl.server.maintenance.keeper import Keeper
from howl.submission import TaskRequest, cancel, retry, submit
from tests.helpers.support import run_program

CELERY = str(Path(sys.executable).with_name("celery"))
REFUSED = [*ITS_OWN, "_by:victim:leases", "_kombu.binding.celery", "claims:x", "turns:x", "doorbell:x", "group:x",
           "progress:x", "unacked", "unacked_index", "outcomes:bytes", "x.celery.pidbox", "a\x06\x163", "a\x00b",
           "a\nb", "", " ", "a" * 301]  # fmt: skip
TAKEN = ["outcomes2", "outcome", "dead-letters", "out", "revoked.x", "claims", "progress", "worker.w1", "celeryev", "ü"]


@pytest.fixture
def client(settings: Settings) -> Any:
    with redis_client(settings) as made:
        yield made


def keys(client: Any, settings: Settings) -> set[bytes]:
    return set(client.scan_iter(f"{settings.key_prefix}*", count=1000))


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: repr(name)[:20])
def test_a_name_that_is_no_queues_is_refused_wherever_it_is_given(
    name: str, session: Session, app: Celery, client: Any, settings: Settings
) -> None:
    with pytest.raises(InvalidRequest, match=r"queue|NUL"):
        submit(TaskRequest(name="tests.add", args=[1, 2], queue=name), session, app)
    with pytest.raises(InvalidRequest, match="cannot be a queue"):
        BurstRequest(workers=1, runtime=60, queues=(name,))
    with pytest.raises(ValueError, match="queues"):
        LeaveRequest(repository="a/b", run_id="1", workers=1, runtime=60.0, queues=[name])
    assert session.scalar(select(func.count()).select_from(Task)) == 0
    assert keys(client, settings) == set()


@pytest.mark.parametrize(
    "name", [name for name in REFUSED if not name.endswith(".pidbox")], ids=lambda name: repr(name)[:20]
)
def test_nothing_is_sent_to_such_a_queue_nor_purged_nor_deleted(
    name: str, app: Celery, client: Any, settings: Settings
) -> None:
    if name:  # without one, Celery takes the usual queue
        with pytest.raises(InvalidRequest, match="cannot be a queue"):
            app.send_task("tests.add", (1, 2), queue=name)
    with app.connection_for_write() as connection, connection.channel() as channel:
        for act in (channel.queue_purge, channel._new_queue, lambda queue: channel._delete(queue, "", "", "")):
            with pytest.raises(InvalidRequest, match="cannot be a queue"):
                act(name)
    assert keys(client, settings) == set()


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_nearly_one_of_ours_is_a_queues(
    name: str, session: Session, app: Celery, client: Any, settings: Settings
) -> None:
    submit(TaskRequest(name="tests.add", args=[1, 2], queue=name), session, app)
    app.send_task("tests.add", (1, 2), queue=name)
    assert client.llen(settings.key(name)) == 2


def test_a_route_that_leads_to_one_of_our_keys_is_refused(session: Session, app: Celery) -> None:
    app.conf.task_routes = {"tests.add": {"queue": "outcomes"}}
    with pytest.raises(InvalidRequest, match="'outcomes' cannot be a queue"):
        submit(TaskRequest(name="tests.add", args=[1, 2]), session, app)
    assert session.scalar(select(func.count()).select_from(Task)) == 0


def test_a_workers_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"HOWL_QUEUES.*no queue can be called so"):
        load_settings(queues="celery,outcomes")


def test_a_person_is_told_in_one_sentence(env: dict[str, str]) -> None:
    answer = CliRunner().invoke(
        main,
        ["submit", "command.run", "--args", '[["id"]]', "--queue", "_by:victim:leases"],
        env=env,
        catch_exceptions=False,
    )
    assert answer.exit_code != 0
    assert "'_by:victim:leases' cannot be a queue: one of HOWL's or kombu's own keys" in answer.output


@pytest.mark.parametrize("arguments", [("purge", "-f", "-Q", "revoked"), ("worker", "-Q", "outcomes", "--pool", "solo"),
                                       ("amqp", "queue.purge", "parked")])  # fmt: skip
def test_celerys_own_commands_are_refused_too(
    arguments: tuple[str, ...], env: dict[str, str], client: Any, settings: Settings
) -> None:
    client.xadd(settings.key("revoked"), {"id": "kept"})
    done = run_program([CELERY, "-A", "howl", *arguments], env, timeout=60)
    assert "cannot be a queue" in done.stdout + done.stderr
    assert client.xlen(settings.key("revoked")) == 1


def row(session: Session, task_id: str, **given: Any) -> Task:
    """As an earlier version, or a worker's outcome, may have left it."""
    made = Task(task_id=task_id, name="tests.add", args=[1, 2], kwargs={}, **given)
    session.add(made)
    session.commit()
    return made


def test_a_row_with_such_a_queue_ends_and_keeps_no_other_from_being_pushed(
    session: Session, app: Celery, client: Any, settings: Settings
) -> None:
    long_ago = func.now() - func.make_interval(0, 0, 0, 1)
    row(session, "bad", queue="outcomes", queued_at=long_ago)
    row(session, "good", queue="celery", queued_at=long_ago)
    Keeper(settings, app).push_what_is_missing()
    assert client.llen(settings.key("celery")) == 1
    [(_, fields)] = client.xrange(settings.key("outcomes"))
    assert b'"bad"' in fields[b"outcome"]
    assert b"FAILURE" in fields[b"outcome"]


def test_a_row_with_such_a_queue_is_neither_retried_nor_in_the_way_of_being_cancelled(
    session: Session, app: Celery, client: Any, settings: Settings
) -> None:
    client.xadd(settings.key("revoked"), {"id": "kept"})
    row(session, "ended", queue="revoked", status="failed", rank=4)
    with pytest.raises(InvalidRequest, match="'revoked' cannot be a queue"):
        retry("ended", session, app)
    row(session, "waits", queue="revoked")
    before = client.xlen(settings.key("revoked"))
    cancel("waits", session, app)
    assert client.xlen(settings.key("revoked")) > before
    assert client.type(settings.key("revoked")) == b"stream"


def test_what_was_parked_or_held_for_such_a_queue_is_set_aside(client: Any, settings: Settings) -> None:
    prefix = settings.key_prefix
    client.zadd(settings.key("parked"), {f"{prefix}outcomes\nbad": 1, f"{prefix}celery\ngood": 1})
    client.hset(
        settings.key("claims:celery@w1.boot"), mapping={"a:1:1": f"{prefix}dead\nbad", "a:1:2": f"{prefix}q\nm"}
    )
    client.zadd(settings.key("leases"), {"celery@w1.boot": 1})
    keeping.feed_what_is_due(client, settings)
    keeping.put_back_what_the_dead_held(client, settings)
    assert client.llen(settings.key("unreadable")) == 2
    assert client.lrange(settings.key("celery"), 0, -1) == [b"good"]
    assert client.lrange(settings.key("q"), 0, -1) == [b"m"]
    assert not client.exists(settings.key("outcomes"), settings.key("dead"))
