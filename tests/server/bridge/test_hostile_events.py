"""What anybody with a worker's credential may write, and what the server makes of it: one line, and it goes on."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from sqlalchemy import func, select, update

from howl.connections import postgres
from howl.doctor.failing_parts import AILING
from howl.models import Chord, Task
from howl.outcomes import ChordCreated, Outcome, encode
from howl.server.maintenance.keeper import Keeper
from howl.server.recorder.outcome_streams import Received
from howl.server.recorder.recorder import Recorder
from howl.submission import TaskRequest, submit
from tests.helpers.support import eventually, taken_away

AT = datetime.now(UTC).isoformat()


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.fixture
def write(client, settings):
    """Append a document to the outcomes stream."""
    return lambda document, entry_id="*": client.xadd(settings.key("outcomes"), {"outcome": document}, id=entry_id)


@pytest.fixture
def goes_on(server, write, client, settings, task_row):
    """Check that what comes afterwards is recorded, by the same server."""

    def _goes_on() -> None:
        write(encode(Outcome(task_id="afterwards", state="SUCCESS", at=AT)))
        eventually(lambda: task_row("afterwards") or server.popen.poll() is not None)
        eventually(lambda: not client.xlen(settings.key("outcomes")))
        assert server.popen.poll() is None, server.output

    return _goes_on


def _document(**given) -> bytes:
    return json.dumps({"kind": "outcome", "task_id": "t1", "state": "SUCCESS", "at": AT} | given).encode()


@pytest.mark.parametrize("task_id", ["a\x00b", "a\ud800b"], ids=["NUL", "half a character"])
def test_an_id_that_cannot_be_stored_is_set_aside(task_id, server, write, client, settings, goes_on):
    write(_document(task_id=task_id))
    goes_on()
    assert client.llen(settings.key("unreadable")) == 1


def test_an_entry_from_the_far_future_is_recorded_as_of_now(server, write, goes_on, task_row):
    write(_document(), entry_id="18446744073709551000-1")
    goes_on()
    assert abs(task_row("t1").finished_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_field_with_an_endless_name_of_many_lines_is_one_short_line(server, write, goes_on):
    write(_document(**{"evil\n" * 100_000: 1}))
    goes_on()
    assert max(map(len, server.output.splitlines())) < 500
    assert "\nevil" not in server.output


def _deep(levels: int) -> list:
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize("levels", [150, 300, 480, 700, 900, 960])
def test_however_deep_a_result_is_nested_the_task_ends(levels, server, write, goes_on, task_row):
    deep = "[" * levels + "]" * levels
    write(_document()[:-1] + f', "result": {deep}}}'.encode())
    write(_document(task_id="t2", state="REVOKED")[:-1] + f', "result": {{"exc_message": [{deep}]}}}}'.encode())
    goes_on()
    assert task_row("t1").finished_at
    assert task_row("t2").finished_at


def test_a_task_said_to_be_pending_is_not_pushed_by_the_server(server, write, goes_on, settings, client, app):
    write(_document(state="PENDING"))
    write(_document(state="PENDING", task_id="t2", name="tests.noop"))
    goes_on()
    with postgres.session(settings.database()) as session:
        session.execute(update(Task).values(queued_at=func.now() - timedelta(minutes=5)))
    Keeper(settings, app).push_what_is_missing()
    assert not client.exists(settings.key("celery"))


def _chord(**given) -> ChordCreated:
    header = [["g1", None], [["p1", None]]]
    body = {"task": "tests.total", "args": [], "kwargs": {}, "options": {"task_id": "b1"}}
    return ChordCreated(**({"group_id": "g1", "parts": ["p1"], "header": header, "body": body} | given))


def _body(**options) -> dict:
    return {"task": "tests.total", "args": [], "kwargs": {}, "options": {"task_id": "b1"} | options}


FORGED = {
    "a deep header": {"header": _deep(400)},
    "an id that is a list": {"body": _body(task_id=["b"])},
    "an id with NUL": {"body": _body(task_id="a\x00b")},
    "a header with NUL": {"header": [["g1", None], [["p\x001", None]]]},
    "a header of numbers": {"header": [["g1", None], [[7, None]]]},
    "an unknown serializer": {"body": _body(serializer="nope")},
    "a wait without end": {"body": _body(countdown=1e300)},
    "a queue that is none": {"body": _body(queue="outcomes")},
    "another chord's parts": {"header": [["g1", None], [["p2", None]]]},
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_chord_is_dropped_with_one_line(kind, server, write, goes_on, settings):
    write(encode(_chord(**FORGED[kind])))
    write(_document(task_id="p1", result=1))
    eventually(lambda: _submitted(settings) or server.popen.poll() is not None)
    goes_on()
    assert len([line for line in server.output.splitlines() if "Chord g1" in line or "Chord body" in line]) == 1
    assert "stopped" not in server.output


def _submitted(settings) -> bool:
    with postgres.session(settings.database()) as session:
        return bool(session.scalar(select(Chord.body_submitted_at).where(Chord.group_id == "g1")))


def test_garbage_is_set_aside_once_although_postgresql_is_away(server, write, stack, client, settings, goes_on):
    with taken_away(stack.postgres):
        with client.pipeline(transaction=True) as together:  # one batch
            together.xadd(settings.key("outcomes"), {"outcome": b"garbage"})
            together.xadd(settings.key("outcomes"), {"outcome": _document()})
            together.execute()
        eventually(lambda: "recorder stopped" in server.output)
        eventually(lambda: _times(client, settings, "recorder") >= 3)
    goes_on()
    assert client.llen(settings.key("unreadable")) == 1
    assert server.output.count("set aside") == 1


def _times(client, settings, part: str) -> int:
    """How often a part of the server has ended since it was last well."""
    told = (json.loads(word) for word in client.hvals(settings.key(AILING)))
    return max((word["times"] for word in told if word["part"] == part), default=0)


def test_large_outcomes_that_waited_do_not_fill_the_servers_memory(server, write, stack, client, settings, goes_on):
    large = _document(result="x" * 1_000_000)
    with taken_away(stack.postgres):
        for _ in range(150):
            write(large)
    goes_on()
    status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    assert peak < 200, "MB"


def test_a_submitted_task_that_the_server_does_not_know_is_pushed_again_all_the_same(session, app, settings, client):
    task_id = submit(TaskRequest(name="tests.noop"), session, app)
    client.delete(settings.key("celery"), settings.key("inflight"))
    session.execute(update(Task).values(pushed_at=func.now() - timedelta(minutes=5), name="somebody.elses"))
    session.commit()
    Keeper(settings, app).push_what_is_missing()
    assert [task_id.encode() in message for message in client.lrange(settings.key("celery"), 0, -1)] == [True]


def test_a_task_recorded_whole_in_one_batch_was_queued_before_it_started(settings, app, task_row):
    begun = int(time.time() * 1000) - 60_000
    received = [Received(f"{begun}-0", Outcome(task_id="t1", state="STARTED", at=AT)),
                Received(f"{begun + 5000}-0", Outcome(task_id="t1", state="SUCCESS", at=AT))]  # fmt: skip
    Recorder(settings, app).record(received)
    assert task_row("t1").queued_at <= task_row("t1").started_at
