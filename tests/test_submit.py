"""Submitting: recorded first, pushed once, refused clearly, never lost."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from sqlalchemy import func, select, update

from howl.connections import postgres
from howl.errors import InvalidRequest, QueueUnavailable, UnknownTask, UnknownWorker
from howl.models import Task, Worker
from howl.server.maintenance.keeper import Keeper
from howl.submission import TaskRequest, cancel, push, retry, submit
from tests.helpers.support import eventually, taken_away


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.fixture
def queued(client, settings):
    """How many messages wait on a queue."""
    return lambda queue="celery": client.llen(settings.key(queue))


def _request(**given) -> TaskRequest:
    return TaskRequest(**({"name": "tests.add", "args": [1, 2]} | given))


def test_a_submitted_task_has_a_row_a_message_and_a_mark(session, app, client, settings, task_row, queued):
    task_id = submit(_request(description="sum", submitted_by="me"), session, app)
    row = task_row(task_id)
    assert (row.status, row.args, row.description, row.submitted_by) == ("queued", [1, 2], "sum", "me")
    assert row.pushed_at >= row.queued_at
    assert queued() == 1
    assert client.hexists(settings.key("inflight"), task_id)


def test_the_same_idempotency_key_returns_the_same_task_and_pushes_nothing(session, app, queued):
    first = submit(_request(idempotency_key="k"), session, app)
    # What only people read, and what counts from now, may differ.
    again = _request(idempotency_key="k", description="again", submitted_by="you", expires_in=60)
    assert submit(again, session, app) == first
    assert queued() == 1


def test_a_repeated_request_is_answered_though_its_worker_has_left(session, app):
    session.add(Worker(worker_id="w1"))
    first = submit(_request(idempotency_key="k", worker_id="w1"), session, app)
    session.execute(update(Worker).values(status="offline"))
    assert submit(_request(idempotency_key="k", worker_id="w1"), session, app) == first
    with pytest.raises(UnknownWorker):
        submit(_request(idempotency_key="other", worker_id="w1"), session, app)
    assert session.scalar(select(func.count()).select_from(Task)) == 1


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"args": [5]}, "arguments"), ({"args": [True]}, "arguments"), ({"args": ["1"]}, "arguments"),
        ({"args": [], "kwargs": {"value": 1}}, "arguments"), ({"name": "tests.noop", "args": []}, "name, arguments"),
        ({"queue": "other"}, "queue or worker"), ({"worker_id": "alive"}, "queue or worker"),
        ({"priority": 3}, "priority"), ({"time_limit": 5}, "time limit"),
    ],
)  # fmt: skip
def test_an_idempotency_key_with_another_request_is_refused_and_says_what_differs(session, app, queued, other, named):
    session.add(Worker(worker_id="alive"))
    first = {"name": "tests.echo", "args": [1], "idempotency_key": "k"}
    submit(_request(**first), session, app)
    with pytest.raises(InvalidRequest, match=rf"differs from it in {named}: "):
        submit(_request(**first | other), session, app)
    assert queued() == 1


@pytest.mark.parametrize("value", [1e23, 1e22, 1.0, -0.0, 0.1, 10**40, 1e300, "ü\n", [[]], {"b": {"2": 1}, "a": None}])
def test_the_same_values_are_the_same_request_however_postgresql_keeps_them(session, app, value):
    request = _request(name="tests.echo", args=[value], idempotency_key="k")
    assert submit(request, session, app) == submit(request, session, app)


def test_a_retried_task_is_still_that_of_its_key(session, app):
    request = _request(idempotency_key="k", expires_in=60)
    task_id = submit(request, session, app)
    session.execute(update(Task).where(Task.task_id == task_id).values(status="failed", rank=3))
    session.commit()
    retry(task_id, session, app)
    assert submit(request, session, app) == task_id


def test_of_requests_at_once_under_one_key_one_is_recorded_and_others_are_told(settings, app, queued):
    def ask(number: int) -> str:
        with postgres.session(settings.database()) as opened:
            try:
                return submit(_request(idempotency_key="k", args=[1, number % 2]), opened, app)
            except InvalidRequest as error:
                return error.message

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    ids = {answer for answer in answers if "differs" not in answer}
    assert (len(ids), sum("differs from it in arguments" in answer for answer in answers), queued()) == (1, 8, 1)


def test_pushing_a_task_again_while_it_is_in_flight_does_nothing(session, app, queued):
    task_id = submit(_request(), session, app)
    push(session.get(Task, task_id), app)
    assert queued() == 1


def test_priority_and_queue_choose_the_list(session, app, queued):
    submit(_request(queue="fast", priority=9), session, app)
    assert queued("fast\x06\x169") == 1


NEST = json.loads("[" * 900 + "]" * 900)

REFUSED = {
    "an unknown task": (UnknownTask, {"name": "tests.ad"}, "did you mean 'tests.add'"),
    "too few arguments": (InvalidRequest, {"args": [1]}, "missing a required argument: 'y'"),
    "an unknown argument": (InvalidRequest, {"kwargs": {"z": 1}}, "unexpected keyword argument 'z'"),
    "a wrong type": (InvalidRequest, {"args": [1, "two"]}, "y does not fit"),
    "NUL": (InvalidRequest, {"name": "tests.echo", "args": ["a\x00b"]}, "NUL"),
    "a lone surrogate": (InvalidRequest, {"name": "tests.echo", "args": ["\ud800"]}, "not JSON"),
    "no number": (InvalidRequest, {"name": "tests.echo", "args": [float("nan")]}, "not JSON"),
    "ten megabytes": (InvalidRequest, {"name": "tests.echo", "args": ["x" * 10_000_000]}, "1,048,576 are allowed"),
    "an endless nest": (InvalidRequest, {"name": "tests.echo", "args": [NEST]}, "nested"),
    "a priority of ten": (InvalidRequest, {"priority": 10}, "0 .first. to 9"),
    "an empty queue": (InvalidRequest, {"queue": " "}, "queue must be a text"),
    "a time limit of nothing": (InvalidRequest, {"time_limit": 0}, "time_limit must be"),
    "an expiry in the past": (InvalidRequest, {"expires_in": -1}, "expires_in must be"),
    "a worker nobody knows": (UnknownWorker, {"worker_id": "nobody"}, "active are: 'alive'"),
    "a worker that is gone": (UnknownWorker, {"worker_id": "gone"}, "active are: 'alive'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_is_refused_and_nothing_is_recorded_or_queued(kind, session, app, client):
    session.add_all([Worker(worker_id="alive"), Worker(worker_id="gone", status="offline")])
    session.commit()
    error, wrong, words = REFUSED[kind]
    with pytest.raises(error, match=words):
        submit(_request(**wrong), session, app)
    assert session.scalar(select(func.count()).select_from(Task)) == 0
    assert client.keys(f"{app.conf['howl'].key_prefix}*") == []


def test_a_task_for_one_worker_is_done_by_that_worker(server, start_worker, session, app, task_row, worker_row):
    for name in ("w1", "w2"):
        start_worker(name, "--concurrency", "1")
    eventually(lambda: worker_row("w1") and worker_row("w2"))
    ids = [submit(_request(worker_id="w2"), session, app) for _ in range(4)]
    eventually(lambda: all(task_row(task_id).finished_at for task_id in ids))
    assert {task_row(task_id).worker_id for task_id in ids} == {"w2"}


def test_a_task_whose_worker_goes_away_before_starting_it_fails_within_a_minute(
    server, start_worker, session, app, task_row, worker_row, queued
):
    worker = start_worker("w1", "--concurrency", "1")
    eventually(lambda: worker_row("w1"))
    worker.signal(signal.SIGSTOP)
    task_id = submit(_request(worker_id="w1"), session, app)
    worker.signal(signal.SIGKILL)
    row = eventually(lambda: (row := task_row(task_id)).finished_at and row, timeout=60)
    assert (row.status, row.error_type, row.error_message) == ("failed", "howl.errors.WorkerGone", "worker gone")
    assert queued("worker.w1") == 0


def test_a_submission_while_redis_is_away_is_recorded_and_pushed_when_it_is_back(
    session, app, stack, server, start_worker, task_row
):
    with taken_away(stack.redis):
        with pytest.raises(QueueUnavailable, match="is recorded"):
            submit(_request(), session, app)
        task_id = session.scalar(select(Task.task_id))
        assert task_row(task_id).pushed_at is None
    start_worker("w1")
    assert eventually(lambda: task_row(task_id).result) == 3


def test_a_task_that_redis_lost_is_pushed_again_and_one_that_waits_or_ended_is_not(session, app, settings, client,
                                                                                  queued):  # fmt: skip
    lost, _waiting, ended = (submit(_request(), session, app) for _ in range(3))
    client.delete(settings.key("celery"))
    client.hdel(settings.key("inflight"), lost, ended)
    session.execute(update(Task).values(pushed_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 2)))
    session.execute(update(Task).where(Task.task_id == ended).values(status="succeeded", rank=3))
    session.commit()
    keeper = Keeper(settings, app)
    keeper.push_what_is_missing()
    keeper.push_what_is_missing()
    messages = client.lrange(settings.key("celery"), 0, -1)
    assert [lost in message.decode() for message in messages] == [True]


def test_a_task_that_redis_lost_while_it_ran_is_pushed_again_but_not_if_it_may_have_ended(session, app, settings,
                                                                                          client):  # fmt: skip
    begun, told_of_later = (submit(_request(), session, app) for _ in range(2))
    client.delete(settings.key("celery"), settings.key("inflight"))
    past = func.now() - func.make_interval(0, 0, 0, 0, 0, 2)
    session.execute(update(Task).values(pushed_at=past, status="started", rank=1, attempts=1))
    session.execute(update(Task).where(Task.task_id == told_of_later).values(attempts=2))
    session.commit()
    Keeper(settings, app).push_what_is_missing()
    messages = client.lrange(settings.key("celery"), 0, -1)
    assert [begun in message.decode() for message in messages] == [True]


def test_an_expired_task_is_recorded_as_expired_although_no_worker_came(session, app, settings, server, task_row,
                                                                       queued):  # fmt: skip
    task_id = submit(_request(expires_in=60), session, app)
    session.execute(update(Task).values(expires_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 1)))
    session.commit()
    Keeper(settings, app).expire()
    eventually(lambda: task_row(task_id).status == "expired")
    assert queued() == 0


def test_a_task_over_its_time_limit_fails_and_says_so(session, app, server, start_worker, task_row):
    start_worker("w1")
    task_id = submit(_request(name="tests.sleep", args=[60], time_limit=0.5), session, app)
    row = eventually(lambda: (row := task_row(task_id)).finished_at and row)
    assert row.status == "failed"
    assert "TimeLimitExceeded" in row.error_type


def test_a_running_task_is_stopped_by_cancel_and_one_that_waits_never_starts(session, app, server, start_worker,
                                                                            task_row, queued):  # fmt: skip
    waiting = submit(_request(), session, app)
    assert cancel(waiting, session, app) == "queued"
    eventually(lambda: task_row(waiting).status == "cancelled")
    assert queued() == 0
    start_worker("w1")
    running = submit(_request(name="tests.sleep", args=[60]), session, app)
    eventually(lambda: task_row(running).status == "started")
    assert cancel(running, session, app) == "started"
    eventually(lambda: task_row(running).status == "cancelled")
    assert cancel(running, session, app) == "cancelled"


def test_cancelling_what_nobody_knows_says_so(session, app):
    with pytest.raises(UnknownTask, match="nobody"):
        cancel("nobody", session, app)


def test_the_row_is_there_before_the_message(session, app, settings, monkeypatch):
    seen = []

    def look(task, _):
        with postgres.session(settings.database()) as other:
            seen.append(other.get(Task, task.task_id).status)

    monkeypatch.setattr("howl.submission.push", look)
    submit(_request(), session, app)
    assert seen == ["queued"]
