"""The recorder: every outcome once, whatever comes in whatever order."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations

import pytest
import redis
from sqlalchemy import func, select, text

from howl.connections import postgres
from howl.models import TaskEvent
from howl.outcomes import ChordCreated, Outcome, died, encode, failure
from howl.server.recorder.outcome_streams import OutcomeStream, Received
from howl.server.recorder.recorder import Recorder
from howl.server.supervision import end
from tests import tasks
from tests.helpers.support import PATIENCE, eventually, taken_away

AT = datetime.now(UTC).isoformat()


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


def _outcome(state: str, attempt: int = 1, **given) -> Outcome:
    return Outcome(task_id="t1", state=state, at=AT, attempt=attempt, **given)


STORY = [
    _outcome("STARTED", worker_id="w1", name="a.task", args=[1], kwargs={"k": 2}),
    _outcome("RETRY", worker_id="w1", result={"exc_type": "ValueError", "exc_message": ["first"]}, traceback="…"),
    _outcome("STARTED", 2, worker_id="w2", name="a.task"),
    _outcome("SUCCESS", 2, worker_id="w2", result=42, runtime=0.0005),
]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_in_whatever_order_outcomes_arrive_the_row_ends_the_same(shared, order, together):
    recorder, row = shared
    received = [Received(f"{1_700_000_000_000 + number}-0", STORY[number]) for number in order]
    for batch in [received] if together else [[item] for item in received]:
        recorder.record(batch)
    ended = row()
    assert (ended.status, ended.attempts, ended.result, ended.worker_id) == ("succeeded", 2, 42, "w2")
    assert (ended.name, ended.args, ended.kwargs, ended.runtime) == ("a.task", [1], {"k": 2}, 0.0005)
    assert (ended.error, ended.error_message, ended.traceback) == (None, None, None)
    assert ended.started_at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.fixture
def shared(app, settings, task_row):
    """A recorder on this test's database."""
    return Recorder(settings, app), lambda: task_row("t1")


def test_recording_the_same_entries_again_changes_nothing(shared, settings):
    recorder, row = shared
    received = [Received(f"{number}-0", outcome) for number, outcome in enumerate(STORY, 1)]
    recorder.record(received)
    before = row()
    recorder.record(received)
    assert row().finished_at == before.finished_at
    with postgres.session(settings.database()) as session:
        assert session.scalar(select(func.count()).select_from(TaskEvent)) == len(STORY)


#: Ends of one task in the order of time, and which of them stands.
ENDS = {
    "a success stands": (["SUCCESS", "FAILURE", "STARTED"], 0),
    "the first of two": (["SUCCESS", "SUCCESS"], 0),
    "sent again, it succeeded": (["FAILURE", "SUCCESS", "FAILURE"], 1),
    "sent again, it failed otherwise": (["FAILURE", "FAILURE"], 1),
    "cancelled at last": (["FAILURE", "REVOKED"], 1),
}


def test_a_success_stands_and_of_other_ends_the_last(shared, task_row):
    """In whatever order they arrive, and of whichever attempt: a task that is sent again begins with its first."""
    recorder, number = shared[0], 0
    for what, (states, standing) in ENDS.items():
        told = [(place, state) for place, state in enumerate(states)]
        for order in permutations(told):
            for together in (True, False):
                number += 1
                received = [
                    Received(f"{1000 + place}-{number}", _end(f"t{number}", place, state)) for place, state in order
                ]
                for batch in [received] if together else [[item] for item in received]:
                    recorder.record(batch)
                ended = task_row(f"t{number}")
                assert ended.finished_at == datetime.fromtimestamp(1 + standing / 1000, UTC), what
                assert (ended.result or ended.error["exc_message"][0]) == f"end {standing}", what


def _end(task_id: str, place: int, state: str) -> Outcome:
    word = f"end {place}"
    result = word if state == "SUCCESS" else {"exc_type": "E", "exc_message": [word]}
    return Outcome(task_id=task_id, state=state, at=AT, attempt=3 if place == 0 else 1, result=result)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
@pytest.mark.parametrize(
    ("end", "status"), [(died("t1", 5), "dead"), (failure("t1", "REVOKED", ValueError()), "cancelled")]
)
def test_an_end_that_no_run_told_is_that_of_the_latest_attempt(shared, end, status, together):
    """Of a task that had asked for retries it stayed `started` for ever: the end was taken for an earlier attempt's."""
    recorder, row = shared
    story = [_outcome("STARTED", 1), _outcome("RETRY", 1), _outcome("STARTED", 3), end]
    received = [Received(f"{number}-0", outcome) for number, outcome in enumerate(story, 1)]
    for batch in [received] if together else [[item] for item in received]:
        recorder.record(batch)
    assert (row().status, row().attempts) == (status, 3)


def test_an_end_of_a_task_that_never_began_is_of_its_first_attempt(shared):
    recorder, row = shared
    recorder.record([Received("1-0", failure("t1", "REVOKED", ValueError()))])
    assert (row().status, row().attempts) == ("cancelled", 1)


def test_what_was_read_and_not_confirmed_is_read_again_after_a_restart(settings, app, client, task_row):
    client.xadd(settings.key("outcomes"), {"outcome": encode(_outcome("SUCCESS", result=7))})

    async def read_and_die() -> None:
        recorder = Recorder(settings, app)
        async for batch in recorder.outcomes.batches():
            recorder.record(batch.received)
            break  # between its commit and its confirmation
        await recorder.outcomes.close()

    asyncio.run(read_and_die())
    assert client.xlen(settings.key("outcomes")) == 1
    asyncio.run(_run_until(Recorder(settings, app), lambda: not client.xlen(settings.key("outcomes"))))
    assert task_row("t1").result == 7
    with postgres.session(settings.database()) as session:
        assert session.scalar(select(func.count()).select_from(TaskEvent)) == 1


def test_what_ended_the_server_three_times_is_set_aside_and_its_neighbours_are_recorded(
    settings, app, client, task_row
):
    for task_id in ("t1", "t2"):
        client.xadd(settings.key("outcomes"), {"outcome": encode(replace(_outcome("SUCCESS"), task_id=task_id))})

    async def read_and_die() -> list[str]:
        stream = OutcomeStream(settings)
        async for batch in stream.batches():
            await stream.close()
            return [item.entry.task_id for item in batch.received]
        return []

    lives = [asyncio.run(read_and_die()) for _ in range(4)]
    assert lives == [["t1", "t2"], ["t1"], ["t1"], []], "alone from the second life on"
    asyncio.run(_run_until(Recorder(settings, app), lambda: not client.xlen(settings.key("outcomes"))))
    assert (task_row("t1").status, task_row("t1").error_type) == ("failed", "howl.errors.OutcomeRefused")
    assert task_row("t2").status == "succeeded"
    assert client.llen(settings.key("unreadable")) == 1


def test_a_recorder_that_starts_again_in_one_process_gives_no_entry_up(settings, client):
    client.xadd(settings.key("outcomes"), {"outcome": encode(_outcome("SUCCESS"))})

    async def start_again_and_again() -> list[int]:
        stream, found = OutcomeStream(settings), []
        for _ in range(6):
            async for batch in stream.batches():
                found.append(len(batch.received))
                break
        await stream.close()
        return found

    for _ in range(2):  # what it has read itself, and what an earlier process had
        assert asyncio.run(start_again_and_again()) == [1] * 6


def test_a_mark_of_flight_goes_with_the_end_and_not_before(settings, app, client):
    client.hset(settings.key("inflight"), mapping={"t1": 1, "t2": 1})
    client.xadd(settings.key("outcomes"), {"outcome": encode(_outcome("SUCCESS"))})
    client.xadd(settings.key("outcomes"), {"outcome": encode(Outcome(task_id="t2", state="STARTED", at=AT))})
    asyncio.run(_run_until(Recorder(settings, app), lambda: not client.xlen(settings.key("outcomes"))))
    assert client.hkeys(settings.key("inflight")) == [b"t2"]


async def _run_until(recorder: Recorder, done) -> None:
    running = asyncio.create_task(recorder.run())
    await asyncio.to_thread(eventually, done)
    await end([running])


GARBAGE = {
    "no JSON": b"\xff\xfe{",
    "nested too deeply": b"[" * 5000,
    "no object": b"[]",
    "no kind": b"{}",
    "an unknown field": json.dumps({"kind": "outcome", "task_id": "x", "state": "SUCCESS", "at": AT, "z": 1}).encode(),
    "a missing field": json.dumps({"kind": "outcome", "task_id": "x"}).encode(),
    "a wrong type": json.dumps({"kind": "outcome", "task_id": 7, "state": "SUCCESS", "at": AT}).encode(),
    "an endless name": json.dumps({"kind": "outcome", "task_id": "x" * 300, "state": "SUCCESS", "at": AT}).encode(),
    "a wrong time": json.dumps({"kind": "outcome", "task_id": "x", "state": "SUCCESS", "at": "noon"}).encode(),
    "ten megabytes": b"x" * 10_000_000,
    "a chord of numbers": json.dumps({"kind": "chord", "group_id": "g", "parts": [5]}).encode(),
}


def test_garbage_is_set_aside_each_with_one_line_and_its_neighbours_are_recorded(server, client, settings, task_row):
    stream = settings.key("outcomes")
    for number, document in enumerate(GARBAGE.values()):
        client.xadd(stream, {"outcome": document})
        neighbour = Outcome(task_id=f"n{number}", state="SUCCESS", at=AT, result=2**70)
        client.xadd(stream, {"outcome": encode(neighbour)})
    client.xadd(stream, {"something": b"else"})
    eventually(lambda: not client.xlen(stream))
    assert client.llen(settings.key("unreadable")) == len(GARBAGE) + 1
    eventually(lambda: server.output.count("set aside") >= len(GARBAGE) + 1)  # which is said when it has been done
    assert len([line for line in server.output.splitlines() if "set aside" in line]) == len(GARBAGE) + 1
    assert all(len(line) < 500 for line in server.output.splitlines())
    assert [task_row(f"n{number}").result for number in range(len(GARBAGE))] == [2**70] * len(GARBAGE)


def test_an_outcome_that_postgresql_refuses_does_not_hold_up_its_neighbours(server, client, settings, task_row):
    with postgres.session(settings.database()) as session:
        session.execute(text("ALTER TABLE tasks ADD CONSTRAINT refusal CHECK (task_id <> 'refused')"))
    for task_id in ("before", "refused", "after"):
        client.xadd(settings.key("outcomes"), {"outcome": encode(Outcome(task_id=task_id, state="SUCCESS", at=AT))})
    eventually(lambda: not client.xlen(settings.key("outcomes")))
    assert (task_row("before").status, task_row("after").status) == ("succeeded", "succeeded")
    assert b"refused" in client.lindex(settings.key("unreadable"), 0)


@pytest.mark.parametrize("body", [{}, {"task": 7}, {"task": "tests.add", "options": 5}], ids=str)
def test_a_chord_with_a_forged_body_is_dropped_with_one_line(server, client, settings, body):
    forged = ChordCreated(group_id="g1", parts=["p1"], header=[["g1", None], [["p1", None]]], body=body)
    client.xadd(settings.key("outcomes"), {"outcome": encode(forged)})
    client.xadd(settings.key("outcomes"), {"outcome": encode(Outcome(task_id="p1", state="SUCCESS", at=AT))})
    eventually(lambda: "Chord g1" in server.output)
    client.xadd(settings.key("outcomes"), {"outcome": encode(Outcome(task_id="p2", state="SUCCESS", at=AT))})
    eventually(lambda: not client.xlen(settings.key("outcomes")))
    assert server.output.count("Chord g1") == 1


def test_outcomes_wait_while_postgresql_is_away_and_are_recorded_afterwards(server, start_worker, app, stack, client,
                                                                            settings, task_row):  # fmt: skip
    start_worker("w1")
    with taken_away(stack.postgres):
        results = [tasks.add.delay(i, i) for i in range(20)]
        eventually(lambda: client.xlen(settings.key("outcomes")) >= len(results))
    assert [result.get(timeout=PATIENCE) for result in results] == [2 * i for i in range(20)]
    assert server.popen.poll() is None


def test_tasks_run_and_are_recorded_while_nats_is_away(server, start_worker, app, stack):
    with taken_away(stack.nats):
        start_worker("w1")
        assert tasks.add.delay(2, 2).get(timeout=PATIENCE) == 4


def test_server_and_worker_go_on_when_redis_comes_back(server, start_worker, app, stack):
    start_worker("w1")
    assert tasks.add.delay(1, 1).get(timeout=PATIENCE) == 2
    with taken_away(stack.redis):
        eventually(lambda: "recorder stopped" in server.output)
    assert eventually(lambda: _answer(3)) == 6


def _answer(number: int):
    try:
        return tasks.add.apply_async((number, number), retry=False).get(timeout=PATIENCE)
    except redis.ConnectionError:
        return None  # a pooled connection of before
