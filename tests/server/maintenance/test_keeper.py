"""What holds up none of the keeper's duties: a row, a message, a chord that nothing can be done for, or a start."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from howl.broker import set_aside
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.models import Chord, Task
from howl.outcomes import ChordCreated
from howl.queries.queues import survey
from howl.server.chords import chords
from howl.server.maintenance import lease_reaper
from howl.server.maintenance.keeper import Keeper
from howl.submission import TaskRequest, submit

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis_client(settings) as made:
        yield made


@pytest.fixture
def ends(client: Any, settings: Settings) -> Callable[[], dict[str, str]]:
    """The ends that wait to be recorded: errors' types by task."""

    def _ends() -> dict[str, str]:
        told = [json.loads(fields[b"outcome"]) for _, fields in client.xrange(settings.key("outcomes"))]
        return {end["task_id"]: end["result"]["exc_type"] for end in told}

    return _ends


def _message(task_id: str) -> str:
    return json.dumps({"headers": {"id": task_id, "task": "tests.noop"}, "body": "", "properties": {}})


@pytest.mark.parametrize("fault", ["arguments that do not fit", "a queue that is no list"])
def test_a_submission_that_cannot_be_pushed_holds_up_no_other_and_ends_after_a_few_tries(
    fault: str, settings: Settings, client: Any, session: Session, app: Celery, ends: Any
) -> None:
    bad, good = (submit(TaskRequest(name="tests.noop", queue=queue), session, app) for queue in ("bad", "good"))
    client.delete(*(settings.key(name) for name in ("bad", "good", "inflight")))
    if fault == "a queue that is no list":
        client.set(settings.key("bad"), "no list")
    else:  # as when the task has changed since
        session.execute(update(Task).where(Task.task_id == bad).values(args=[1, 2, 3]))
    session.execute(update(Task).values(pushed_at=LONG_AGO, queued_at=LONG_AGO))
    session.execute(update(Task).where(Task.task_id == good).values(queued_at=datetime.now(UTC)))
    session.commit()
    keeper = Keeper(settings, app)
    for _ in range(set_aside.TRIES):
        assert ends() == {}
        keeper.push_what_is_missing()
        assert client.llen(settings.key("good")) == 1
    assert ends() == {bad: "TaskSetAside"}
    assert survey(settings)["set_aside"]["tasks"].startswith(f"1; the last: {bad}: ")


def test_parked_and_held_messages_of_a_queue_that_is_no_list_hold_up_no_others(
    settings: Settings, client: Any, app: Celery, ends: Any
) -> None:
    client.set(settings.key("bad"), "no list")
    claims_of = {name: f"{settings.key(name)}\n" for name in ("bad", "good")}
    client.zadd(settings.key("parked"), {claims_of[name] + _message(f"parked-{name}"): 1 for name in claims_of})
    client.zadd(settings.key("leases"), {"celery@w1.boot": 1, "celery@w2.boot": 2})
    for number, name in enumerate(claims_of, 1):
        owner = f"celery@w{number}.boot"
        client.hset(settings.key(f"claims:{owner}"), f"{owner}:1:1", claims_of[name] + _message(f"held-{name}"))
    Keeper(settings, app).put_back()
    assert client.llen(settings.key("good")) == 2
    assert ends() == {"parked-bad": "TaskSetAside", "held-bad": "TaskSetAside"}
    assert client.llen(settings.key("unreadable")) == 2
    assert set(survey(settings)["set_aside"]) == {"parked tasks", "claims"}


def test_an_owner_of_whom_redis_makes_no_sense_holds_up_no_other(settings: Settings, client: Any, app: Celery) -> None:
    client.zadd(settings.key("leases"), {"celery@w1.boot": 1, "celery@w2.boot": 2})
    client.set(settings.key("turns:celery@w1.boot"), "no hash")
    for owner in ("celery@w1.boot", "celery@w2.boot"):
        claim = f"{settings.key('good')}\n{_message(owner)}"
        client.hset(settings.key(f"claims:{owner}"), f"{owner}:1:1", claim)
    keeper = Keeper(settings, app)
    for _ in range(set_aside.TRIES):
        keeper.put_back()
        assert client.llen(settings.key("good")) == 1
    assert client.zrange(settings.key("leases"), 0, -1) == []
    assert "celery@w1.boot" in survey(settings)["set_aside"]["claims"]


def test_a_chord_whose_broker_is_away_for_ever_holds_up_no_other_and_its_body_fails(
    settings: Settings, app: Celery, session: Session, client: Any, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_aside, "TRIES", 2)
    for number, name in enumerate(("first", "second")):
        parts = [f"{name}-part"]
        body = {"task": "tests.echo", "args": [], "kwargs": {}, "options": {"task_id": name, "retry": False}}
        header = [[str(uuid.uuid4()), None], [[[parts[0], None], None]]]
        created = ChordCreated(group_id=f"g{number}", parts=parts, header=header, body=body)
        chords.record(session, [(created, None)])
        session.add(Task(task_id=parts[0], status="succeeded", rank=3, result=1))
    session.commit()
    away = app._connection("redis://127.0.0.1:1/0")
    monkeypatch.setattr(app, "connection_for_write", lambda *_, **__: away)
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    chords.submit_due(settings, app)
    assert ends() == {}
    assert not chords.submit_due(settings, app), "tried again by the keeper alone"
    chords.wake_all(settings)
    chords.submit_due(settings, app)
    assert ends() == {"first": "ChordError", "second": "ChordError"}
    assert survey(settings)["set_aside"]["chords"].startswith("2; ")
    assert None not in session.scalars(select(Chord.body_submitted_at)).all()


def test_a_duty_that_fails_holds_up_no_other(settings: Settings, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    keeper = Keeper(settings, app)

    def fails() -> None:
        raise ValueError("as told")

    monkeypatch.setattr(keeper, "_duties", lambda: (fails, lambda: done.append("second")))
    with pytest.raises(ValueError, match="as told"):
        asyncio.run(keeper.run())
    assert done == ["second"]


def _start(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the keeper start, and end by its own fault, as it does again and again."""

    def fails() -> None:
        raise ValueError("as told")

    monkeypatch.setattr(keeper, "_duties", lambda: (fails,))
    with pytest.raises(ValueError, match="as told"):
        asyncio.run(keeper.run())


def test_no_start_renews_the_leases_of_the_dead_again_but_a_redis_that_came_back_does(
    settings: Settings, client: Any, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, seconds = settings.key("leases"), client.time()[0]
    client.zadd(leases, {"celery@dead.boot": (seconds - 5) * 1000, "celery@alive.boot": (seconds - 5) * 1000})

    def deadlines() -> dict[bytes, float]:
        return dict(client.zrange(leases, 0, -1, withscores=True))

    keeper = Keeper(settings, app)
    _start(keeper, monkeypatch)
    granted = deadlines()
    assert min(granted.values()) > (seconds + settings.lease - 1) * 1000
    client.zadd(leases, {"celery@alive.boot": 1})  # it has said something since, long ago
    _start(keeper, monkeypatch)
    assert deadlines()[b"celery@alive.boot"] == 1, "the keeper's own fault"
    later = settings.model_copy(update={"lease": settings.lease + 100})
    _start(Keeper(later, app), monkeypatch)
    assert deadlines()[b"celery@alive.boot"] > granted[b"celery@alive.boot"]
    assert deadlines()[b"celery@dead.boot"] == granted[b"celery@dead.boot"], "granted once, and nothing said since"
    client.hset(settings.key(lease_reaper.GRANTED), lease_reaper.LIFE, "of a Redis that was there before")
    _start(Keeper(later, app), monkeypatch)
    assert deadlines()[b"celery@dead.boot"] > granted[b"celery@dead.boot"]
