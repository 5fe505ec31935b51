"""What is asked several times a second, and what is shown of it once."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from howl.models import Task, TaskEvent, Worker
from howl.outcomes import FINAL_STATUSES
from howl.queries import overview
from howl.queries.records import show_task
from howl.run_progress import in_words, progress

TASK_ID = "1f0c9a00-0000-4000-8000-000000000001"


@pytest.fixture
def happened(session):
    """A task that runs, and what happened to it."""

    def _happened(*events, status="started"):
        session.add(Task(task_id=TASK_ID, name="tests.report", status=status, rank=1, worker_id="w1"))
        session.add_all(TaskEvent(task_id=TASK_ID, kind=kind, data=data) for kind, data in events)
        session.commit()

    return _happened


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"done": 1, "total": 4, "note": "first"}, (1, 4, "first")),
        ({"done": 1, "total": None, "note": None}, (1, None, None)),
        ({"done": "many", "total": True}, (None, None, None)),
        ({"done": float("nan"), "total": float("inf")}, (None, None, None)),
        ({"attempt": 1, "state": "HALFWAY", "result": {"done": 1, "total": 2}}, (1, 2, "HALFWAY")),
        ({"attempt": 1, "state": "PROGRESS", "result": {"current": 3, "total": 9}}, (3, 9, "PROGRESS")),
        ({"attempt": 1, "state": "BUILDING", "result": {"step": "x"}}, (None, None, 'BUILDING {"step": "x"}')),
        ({"attempt": 1, "state": "BUILDING", "result": None}, (None, None, "BUILDING")),
    ],
)
def test_progress_is_read_however_it_was_said(data, told):
    assert tuple(progress(data).values()) == told


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"done": 34, "total": 1000, "note": "x"}, "34/1,000, x"),
        ({"done": 0, "total": 2.5, "note": None}, "0/2.50"),
        ({"done": 1234567.0, "total": None, "note": None}, "1,234,567"),
        ({"done": None, "total": 3, "note": "soon"}, "soon"),
    ],
)
def test_progress_reads_as_it_was_said(told, words):
    assert in_words(told) == words


def test_a_task_shows_its_newest_progress_and_its_last_lines_apart_from_what_happened(happened, session):
    happened(
        ("received", {}),
        *[("progress", {"done": number, "total": 100, "note": None}) for number in range(60)],
        *[("log", {"lines": [f"line {number}", "more"], "dropped": 0}) for number in range(60)],
        ("log", {"lines": ["last"], "dropped": 7}),
    )
    shown = show_task(session, TASK_ID)
    assert (shown["progress"]["done"], shown["progress"]["total"]) == (59, 100)
    assert (len(shown["log"]), shown["log"][-2:]) == (20, ["… 7 lines left out", "last"])
    assert [event["kind"] for event in shown["events"]] == ["received"]


def test_a_run_that_begins_anew_has_made_no_progress(happened, session):
    happened(("progress", {"done": 9, "total": 10}), ("retrying", {}))
    assert show_task(session, TASK_ID)["progress"] is None


RECEIVED = ("received", {"name": "tests.report", "retries": 0})
RECEIVED_AGAIN = ("received", {"name": "tests.report", "retries": 1})
TOLD = ("progress", {"done": 1, "total": 2})
STATE = ("progress", {"attempt": 1, "pid": 7, "state": "HALFWAY", "result": {"done": 1, "total": 2}})
STARTED, STARTED_ANEW = ("started", {"attempt": 1, "pid": 7}), ("started", {"attempt": 1, "pid": 8})
STARTED_AGAIN = ("started", {"attempt": 2, "pid": 7})
RETRYING = ("retrying", {"attempt": 1, "pid": 7})


@pytest.mark.parametrize(
    ("events", "done"),
    [
        # What a run says with its outcomes may be quicker than NATS, which tells that it was received.
        ([STATE, RECEIVED], 1),
        ([STATE, STARTED], 1),
        ([STATE, STARTED, RECEIVED], 1),
        ([RECEIVED, TOLD, STARTED], 1),
        ([STATE, RECEIVED_AGAIN], None),
        ([STATE, STARTED_AGAIN], None),
        ([STATE, STARTED_ANEW], None),
        ([TOLD, RECEIVED], None),
        ([STATE, RETRYING], None),
        ([RECEIVED, TOLD, RETRYING], None),
        # The end of the first run is told after the second has begun.
        ([RECEIVED_AGAIN, TOLD, RETRYING], 1),
        ([RECEIVED_AGAIN, TOLD, ("retrying", {"attempt": 2})], None),
    ],
)
def test_progress_is_the_last_runs_whichever_way_its_news_were_quicker(happened, session, events, done):
    happened(*events)
    assert (show_task(session, TASK_ID)["progress"] or {"done": None})["done"] == done


def test_what_a_task_said_on_a_worker_that_died_is_no_progress_on_the_next(session):
    session.add(Task(task_id=TASK_ID, name="tests.report", status="started", rank=1, worker_id="w2"))
    session.add(TaskEvent(task_id=TASK_ID, kind="progress", worker_id="w1", data=STATE[1]))
    session.add(TaskEvent(task_id=TASK_ID, kind="received", worker_id="w2", data=RECEIVED[1]))
    session.commit()
    assert show_task(session, TASK_ID)["progress"] is None


def test_a_tasks_progress_is_no_state_of_its_own_to_celery(happened, app):
    happened(("progress", {"done": 1, "total": 2, "note": None}))
    assert app.AsyncResult(TASK_ID).state == "STARTED"


def test_the_speed_of_a_house_is_what_ended_in_the_last_seconds(session):
    now = datetime.now(UTC)
    kinds = [*FINAL_STATUSES, "started", "log"]
    session.add_all(TaskEvent(task_id=f"{kind}-{n}", kind=kind, at=now) for kind in kinds for n in range(4))
    session.add(TaskEvent(task_id="long ago", kind="succeeded", at=now - timedelta(hours=1)))
    session.commit()
    assert overview.house(session)["ended_per_second"] == 4 * len(FINAL_STATUSES) / overview.SPAN


def test_the_speed_of_a_busy_house_is_what_ended_in_the_time_its_newest_events_tell_of(session, monkeypatch):
    monkeypatch.setattr(overview, "NEWEST", 100)
    now = session.scalar(select(func.now()))  # which stands still until the transaction ends
    session.add_all(TaskEvent(task_id=str(n), kind="succeeded", at=now - timedelta(seconds=2)) for n in range(200))
    session.flush()
    assert overview.house(session)["ended_per_second"] == 50  # 100 in the 2 seconds


def test_a_house_has_those_who_are_there_and_what_runs_on_each(session):
    session.add_all(
        [Worker(worker_id="w1"), Worker(worker_id="w2", status="draining"), Worker(worker_id="w3", status="lost")]
    )
    session.add_all(Task(task_id=f"t{n}", status="started", rank=1, worker_id="w2") for n in range(3))
    session.add(Task(task_id="lost", status="started", rank=1, worker_id="w3"))
    session.commit()
    seen = overview.house(session)
    assert [(worker["worker_id"], worker["running"]) for worker in seen["workers"]] == [("w1", 0), ("w2", 3)]
    assert (seen["workers_total"], seen["running_total"], len(seen["running"])) == (2, 4, 4)
    assert (seen["running_on_gone"], seen["concurrency_total"]) == (1, 0)


def test_a_queue_is_served_by_active_workers_that_take_from_it_and_a_workers_own_by_it_alone(session):
    session.add_all(
        [Worker(worker_id="w1", queues=["celery", "gpu"]), Worker(worker_id="w2", status="draining", queues=["slow"])]
    )
    session.add_all(Task(task_id=queue, queue=queue) for queue in ("gpu", "slow", "worker.w1", "worker.w2"))
    session.add(Task(task_id="ended", queue="old", status="succeeded", rank=3))
    session.add(Task(task_id="runs", queue="busy", status="started", rank=1, worker_id="w2"))
    session.commit()
    assert overview.served_queues(session) == {"celery", "gpu", "worker.w1"}
    assert overview.queues_with_waiting_tasks(session) == {"gpu", "slow", "worker.w1", "worker.w2"}
