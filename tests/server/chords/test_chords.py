"""Chords, however many parts they have: each costs what it costs once, and ends."""

import asyncio
import json
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import redis
from sqlalchemy import func, select, text, update

from howl.connections import postgres
from howl.errors import ChordRefused
from howl.models import Chord, StoredPiece, Task
from howl.outcomes import ChordCreated, Outcome, encode, in_pieces
from howl.server.chords import chords
from howl.server.doctor import judge_chords
from howl.server.recorder.outcome_streams import Received
from howl.server.recorder.recorder import Recorder
from howl.server.supervision import end
from tests.helpers.support import eventually

AT = datetime.now(UTC).isoformat()


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.fixture
def bodies(settings, client):
    """How many bodies are on their queue."""
    return lambda: client.llen(settings.key("celery"))


def _chord(parts: list[str], body_id: str | None = None, **options) -> ChordCreated:
    group_id = str(uuid.uuid4())
    body = {"task": "tests.echo", "args": [], "kwargs": {}, "subtask_type": None, "immutable": False}
    body |= {"options": {"task_id": body_id or str(uuid.uuid4())} | options}
    header = [[group_id, None], [[[part, None], None] for part in parts]]
    return ChordCreated(group_id=group_id, parts=parts, header=header, body=body)


def _end(task_id: str, **given) -> Outcome:
    return Outcome(task_id=task_id, state="SUCCESS", at=AT, result=1, **given)


def _all_end(settings, parts: list[str]) -> None:
    ended = "INSERT INTO tasks (task_id, status, rank, result) SELECT unnest(CAST(:ids AS text[])), 'succeeded', 3, '1'"
    with postgres.session(settings.database()) as session:
        session.execute(text(ended), {"ids": parts})


def _record(recorder: Recorder, *entries) -> None:
    recorder.record([Received(f"{time.time_ns()}-{number}", entry) for number, entry in enumerate(entries)])


@pytest.mark.parametrize("order", ["first to last", "last to first", "at once"])
def test_a_body_is_submitted_when_the_last_part_has_ended_in_whatever_order(settings, app, bodies, order):
    recorder, parts = Recorder(settings, app), [f"p{number}" for number in range(250)]
    _record(recorder, _chord(parts), _chord(["p0", "p249"]), _chord(["p0", "never"]))
    ends = parts if order == "first to last" else parts[::-1]
    for portion in [ends] if order == "at once" else [ends[:100], ends[100:249], ends[249:]]:
        assert bodies() == 0
        _record(recorder, *map(_end, portion))
        chords.wake(settings, set(portion))
        chords.submit_due(settings, app)
    for _ in range(3):  # the first may have run out of its time
        chords.submit_due(settings, app)
    assert bodies() == 2


def test_a_chord_of_a_hundred_thousand_parts_ends_soon(settings, app, bodies):
    parts = [str(uuid.uuid4()) for _ in range(100_000)]
    recorder = Recorder(settings, app)
    _record(recorder, _chord(parts))
    _all_end(settings, parts)
    looks = 0
    while chords.submit_due(settings, app):
        looks += 1
    assert bodies() == 1
    assert looks < 20


def test_a_chord_that_is_told_of_in_pieces_is_one_in_whatever_order_and_however_often_they_come(settings, app, bodies):
    parts = [str(uuid.uuid4()) for _ in range(12_000)]
    chord = _chord(parts)
    pieces = [*in_pieces(chord, settings.outcome_limit)]
    assert len(pieces) > 1
    assert all(len(encode(piece)) <= settings.outcome_limit for piece in pieces)
    recorder = Recorder(settings, app)
    _record(recorder, *pieces[1:], pieces[1])
    with postgres.session(settings.database()) as session:
        assert session.scalars(select(Chord.size)).all() == []
    _record(recorder, pieces[0])
    with postgres.session(settings.database()) as session:
        assert session.scalars(select(Chord.size)).all() == [12_000]
        assert session.scalars(select(StoredPiece.number)).all() == []
    _all_end(settings, parts)
    while chords.submit_due(settings, app):
        pass
    assert bodies() == 1


@pytest.mark.parametrize("kind", ["parts", "bytes"])
def test_a_chord_that_is_too_large_is_refused_where_it_is_published(kind):
    parts = ["p"] * (100_001 if kind == "parts" else 1)
    with pytest.raises(ChordRefused, match="allowed"):
        list(in_pieces(_chord(parts, stamp="x" * (0 if kind == "parts" else 17 << 20)), 1 << 20))


def test_large_chords_that_wait_for_ever_hold_up_nobodys_outcomes(settings, app, client, task_row):
    stream = settings.key("outcomes")
    for number in range(20):
        parts = [f"{number}.{part}" for part in range(60_000)]
        client.xadd(stream, {"outcome": encode(ChordCreated(group_id=f"g{number}", parts=parts, header=[], body={}))})
    client.xadd(stream, {"outcome": encode(_end("neighbour-0"))})

    def neighbours() -> bool:
        eventually(lambda: task_row("neighbour-0"))
        for number in range(1, 20):
            client.xadd(stream, {"outcome": encode(_end(f"{number}.0"))})
            client.xadd(stream, {"outcome": encode(_end(f"neighbour-{number}"))})
            eventually(lambda number=number: task_row(f"neighbour-{number}"), timeout=5)
        return True

    async def serve() -> None:
        running = asyncio.create_task(Recorder(settings, app).run())
        try:
            await asyncio.to_thread(neighbours)
        finally:
            await end([running])

    asyncio.run(serve())


def test_a_chord_with_too_many_parts_is_none(server, client, settings):
    parts = [f"{part}" for part in range(100_001)]
    client.xadd(settings.key("outcomes"), {"outcome": encode(ChordCreated(group_id="g", parts=parts))})
    eventually(lambda: "it has 100,001 parts, and 100,000 are allowed" in server.output)


def test_a_chord_whose_time_is_over_expires_and_its_body_says_why(settings, app, client, task_row, caplog):
    recorder = Recorder(settings, app)
    _record(recorder, _chord(["lost"], body_id="b1"), _chord(["late"], body_id="b2"))
    with postgres.session(settings.database()) as session:
        old = update(Chord).where(Chord.parts == ["lost"])
        session.execute(old.values(created_at=func.now() - timedelta(days=31)))
    chords.expire(settings, app)
    assert "has expired: its parts had not all ended within 30 days" in caplog.text
    asyncio.run(_recorded(recorder, lambda: task_row("b1")))
    assert (task_row("b1").status, task_row("b2")) == ("failed", None)
    assert "had not all ended within 30 days" in task_row("b1").error_message
    with postgres.session(settings.database()) as session:
        assert sorted(session.scalars(select(Chord.expired))) == [False, True]
        session.execute(update(Chord).values(created_at=func.now() - timedelta(days=70)))
        session.execute(update(Chord).where(Chord.expired).values(body_submitted_at=func.now() - timedelta(days=31)))
    chords.expire(settings, app)
    with postgres.session(settings.database()) as session:
        assert session.scalars(select(Chord.parts)).all() == [[]]


async def _recorded(recorder: Recorder, done) -> None:
    running = asyncio.create_task(recorder.run())
    await asyncio.to_thread(eventually, done)
    await end([running])


def test_one_credential_has_only_so_many_chords_that_wait(settings, app, monkeypatch):
    monkeypatch.setattr(chords, "WAITING_CHORDS", 3)
    monkeypatch.setattr(chords, "WAITING_PARTS", 10)
    with postgres.session(settings.database()) as session:
        created = [_chord(["a"]), _chord(["b"] * 9), _chord(["c"]), _chord(["d"])]
        assert chords.too_many(session, "thief", created) == [created[2], created[3]]
        chords.record(session, [(chord, "thief") for chord in created[:2]])
        assert chords.too_many(session, "thief", [created[2]]) == [created[2]]
        assert chords.too_many(session, "victim", [created[2]]) == []


def test_nobodys_thousands_hold_up_anothers_one(settings, app, monkeypatch, bodies):
    monkeypatch.setattr(chords, "AT_ONCE", 4)
    with postgres.session(settings.database()) as session:
        chords.record(session, [(_chord(["x"]), "thief") for _ in range(50)] + [(_chord(["p"]), None)])
        session.add_all([Task(task_id=name, status="succeeded", rank=3, result=1) for name in ("x", "p")])
    chords.submit_due(settings, app)
    assert bodies() == 1  # of the thief's none: no Redis user has that name


def test_values_too_large_to_be_put_together_fail_the_body(settings, app, client, task_row, monkeypatch):
    recorder = Recorder(settings, app)
    _record(recorder, _chord(["p1", "p2"], body_id="b1"), _end("p1"))
    with postgres.session(settings.database()) as session:
        # A few bytes each in a message, and fifty times as many in memory.
        session.add(Task(task_id="p2", status="succeeded", rank=3, result=[[]] * 600_000))
    chords.submit_due(settings, app)
    asyncio.run(_recorded(recorder, lambda: task_row("b1")))
    assert "64 are allowed" in task_row("b1").error_message


def test_an_error_callback_is_published_once_though_redis_goes_before_its_tasks_end_is_told(
    settings, app, client, task_row, monkeypatch
):
    recorder = Recorder(settings, app)
    callback = {"task": "tests.noop", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    error = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": ["as told"]}
    failed = Outcome(task_id="p1", state="FAILURE", at=AT, result=error, queue="of-the-part")
    _record(recorder, _chord(["p1"], body_id="b1", link_error=[callback]), failed)
    with monkeypatch.context() as patched:
        patched.setattr(app.backend.redis, "xadd", _lose_redis)
        chords.submit_due(settings, app)
    assert client.llen(settings.key("of-the-part")) == 1
    chords.wake_all(settings)
    chords.submit_due(settings, app)
    asyncio.run(_recorded(recorder, lambda: task_row("b1")))
    assert (task_row("b1").status, len(task_row("b1").children)) == ("failed", 1)
    (message,) = client.lrange(settings.key("of-the-part"), 0, -1)
    assert task_row("b1").children[0][0][0] == json.loads(message)["headers"]["id"]


def _lose_redis(*_, **__):
    raise redis.ConnectionError("gone")


def test_the_doctor_tells_of_chords_that_expired():
    assert judge_chords(3, 1200, 0).said == "3 wait for 1,200 parts"
    assert "2 expired within a week" in judge_chords(3, 1200, 2).said
