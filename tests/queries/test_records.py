"""Questions about what is recorded, asked of rows that are written here."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from howl.errors import InvalidRequest, UnknownTask, UnknownWorker
from howl.models import Burst, Task, TaskEvent, Worker
from howl.queries import records, statistics
from howl.queries.statistics import analytics


def before(**length):
    """So long before now."""
    return datetime.now(UTC) - timedelta(**length)


def add_task(session, task_id, status="succeeded", minutes_ago=1.0, **columns):
    """A row as the recorder would leave it."""
    rank = {"queued": 0, "started": 1, "retrying": 2}.get(status, 3)
    given = {"name": "web.fetch", "queue": "celery", "queued_at": before(minutes=minutes_ago)}
    session.add(Task(task_id=task_id, status=status, rank=rank, **(given | columns)))
    session.flush()


def add_worker(session, worker_id, status="active", seconds_ago=1.0, **columns):
    heard = before(seconds=seconds_ago)
    session.add(Worker(worker_id=worker_id, status=status, last_heartbeat_at=heard, **columns))
    session.flush()


def only_row(answer):
    (row,) = answer["rows"]
    return row


def test_tasks_are_listed_newest_first(session):
    for task_id, minutes in (("older", 5), ("newest", 1), ("oldest", 9)):
        add_task(session, task_id, minutes_ago=minutes)
    assert [row["task_id"] for row in records.list_tasks(session)] == ["newest", "older", "oldest"]


@pytest.mark.parametrize(
    "filters",
    [{"status": "failed"}, {"name": "command.run"}, {"worker_id": "w2"}, {"queue": "slow"}, {"since": "10m"}],
)
def test_a_filter_keeps_only_the_tasks_it_names(session, filters):
    add_task(session, "wanted", "failed", 1, name="command.run", worker_id="w2", queue="slow")
    add_task(session, "other", "succeeded", 60, name="web.fetch", worker_id="w1", queue="celery")
    assert [row["task_id"] for row in records.list_tasks(session, **filters)] == ["wanted"]


def test_a_task_that_waits_for_its_worker_is_listed_as_that_workers(session):
    add_task(session, "assigned", "queued", target_worker_id="w1")
    assert [row["task_id"] for row in records.list_tasks(session, worker_id="w1")] == ["assigned"]


def test_no_more_tasks_are_listed_than_asked_for(session):
    for number in range(3):
        add_task(session, f"task-{number}")
    assert len(records.list_tasks(session, limit=2)) == 2


def test_a_task_is_found_by_the_beginning_of_its_id_and_shown_with_its_events_in_order(session):
    add_task(session, "abcdef-1", result={"title": "x"})
    session.add_all([TaskEvent(task_id="abcdef-1", kind=kind) for kind in ("started", "succeeded")])
    task = records.show_task(session, "abcdef")
    assert (task["task_id"], task["result"]) == ("abcdef-1", {"title": "x"})
    assert [event["kind"] for event in task["events"]] == ["started", "succeeded"]


def test_a_beginning_that_two_ids_share_is_refused(session):
    add_task(session, "abcdef-1")
    add_task(session, "abcdef-2")
    with pytest.raises(UnknownTask, match="More than one"):
        records.show_task(session, "abcdef")


@pytest.mark.parametrize("given", ["abcde", "%%%%%%", "abcd_f", "nothing-like-it"])
def test_an_id_that_begins_no_tasks_id_is_unknown(session, given):
    add_task(session, "abcdef-1")
    with pytest.raises(UnknownTask, match="No task"):
        records.show_task(session, given)


def test_workers_are_listed_by_status_with_what_they_run(session):
    add_worker(session, "busy")
    add_worker(session, "leaving", "draining", seconds_ago=2)
    add_worker(session, "gone", "offline")
    add_task(session, "runs", "started", worker_id="busy")
    present = records.list_workers(session, status=("active", "draining"))
    assert [(row["worker_id"], row["running"]) for row in present] == [("busy", 1), ("leaving", 0)]
    assert [row["worker_id"] for row in records.list_workers(session, status="offline")] == ["gone"]
    assert len(records.list_workers(session)) == 3


def test_a_worker_is_shown_with_the_counts_of_its_tasks(session):
    add_worker(session, "w1")
    add_task(session, "a", "succeeded", worker_id="w1")
    add_task(session, "b", "failed", worker_id="w1")
    add_task(session, "c", "failed", worker_id="w2")
    worker = records.show_worker(session, "w1")
    assert (worker["tasks"], worker["total"]) == ({"succeeded": 1, "failed": 1}, 2)


def test_a_worker_nobody_wrote_down_is_unknown(session):
    with pytest.raises(UnknownWorker, match="'nobody'"):
        records.show_worker(session, "nobody")


def test_analytics_of_a_worker_tell_its_speed_and_how_long_it_was_busy(session):
    add_worker(session, "w1", origin="github-actions")
    for number in range(1, 6):
        add_task(session, f"task-{number}", worker_id="w1", runtime=float(number))
    row = only_row(analytics(session, "worker", "w1"))
    assert (row["runtime_median"], row["runtime_p95"], row["busy_seconds"]) == (3.0, pytest.approx(4.8), 15.0)
    assert (row["origin"], row["tasks"], row["success_rate"]) == ("github-actions", {"succeeded": 5}, 1.0)
    assert abs(row["last_seen"] - row["first_seen"]) < timedelta(seconds=30)


def test_analytics_of_workers_name_the_idle_and_the_unregistered_but_not_the_long_gone(session):
    add_worker(session, "idle")
    long_ago = before(days=3)
    add_worker(session, "long gone", "offline", seconds_ago=259_200, registered_at=long_ago)
    add_task(session, "a", worker_id="plain celery")
    rows = analytics(session, "worker", time_range="1h")["rows"]
    assert [(row["worker_id"], row["total"]) for row in rows] == [("idle", 0), ("plain celery", 1)]


def test_analytics_of_a_task_tell_its_success_and_its_waiting(session):
    for number, status in enumerate(("succeeded", "succeeded", "succeeded", "failed", "cancelled")):
        queued = before(minutes=1)
        add_task(session, f"task-{number}", status, queued_at=queued, started_at=queued + timedelta(seconds=number))
    row = only_row(analytics(session, "task", "web.fetch"))
    assert (row["success_rate"], row["total"]) == (0.75, 5)
    assert row["wait_median"] == pytest.approx(2.0)


def test_a_workers_slow_clock_makes_no_negative_waiting(session):
    add_task(session, "a", started_at=before(hours=1))
    assert only_row(analytics(session, "task"))["wait_median"] == 0.0


def test_analytics_count_only_what_was_queued_in_the_time_range(session):
    add_task(session, "recent", minutes_ago=10)
    add_task(session, "older", minutes_ago=120)
    assert only_row(analytics(session, "task", time_range="30m"))["total"] == 1
    assert only_row(analytics(session, "task", time_range="24h"))["total"] == 2


def test_analytics_of_a_queue_tell_what_waits_now_however_old(session):
    add_task(session, "waits", "queued", minutes_ago=2880, queue="slow")
    add_task(session, "runs", "started", minutes_ago=2880, queue="slow")
    row = only_row(analytics(session, "queue", "slow", "1h"))
    assert (row["waiting"], row["running"], row["total"]) == (1, 1, 0)
    assert row["oldest_waiting"] == pytest.approx(172_800, abs=120)


def test_the_overview_counts_tasks_workers_and_what_ended_in_each_hour(session):
    now = datetime.now(UTC)
    add_worker(session, "w1", origin="docker")
    add_worker(session, "w2", "lost", origin="docker")
    add_task(session, "a", "succeeded", finished_at=now)
    add_task(session, "b", "failed", finished_at=now)
    add_task(session, "c", "queued")
    row = only_row(analytics(session, "overview"))
    assert row["tasks"] == {"queued": 1, "succeeded": 1, "failed": 1}
    assert (row["workers"], row["workers_by_origin"]) == ({"active": 1, "lost": 1}, {"docker": 2})
    (hour,) = row["throughput"]
    assert (hour["ended"], hour["hour"].astimezone(UTC)) == (2, now.replace(minute=0, second=0, microsecond=0))


def test_a_burst_is_found_by_its_id_and_while_it_lasts(session):
    long_ago = before(days=3)
    planned = {"origin": "local", "num_workers": 2, "runtime_minutes": 5, "minutes_planned": 10, "started_at": long_ago}
    session.add_all([Burst(burst_id="open", **planned), Burst(burst_id="over", ended_at=long_ago, **planned)])
    session.flush()
    assert only_row(analytics(session, "burst"))["burst_id"] == "open"
    assert only_row(analytics(session, "burst", "over"))["minutes_planned"] == 10


@pytest.mark.parametrize("entity_type", statistics.QUESTIONS)
def test_analytics_of_an_empty_record_are_answered(session, entity_type):
    answer = analytics(session, entity_type)
    assert (answer["entity_type"], answer["time_range"]) == (entity_type, "24h")
    json.dumps(answer, default=datetime.isoformat)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (UnknownWorker, ("worker", "nobody")),
        (UnknownTask, ("task", "no.such")),
        (InvalidRequest, ("queue", "nowhere")),
        (InvalidRequest, ("burst", "never")),
        (InvalidRequest, ("overview", "of what")),
        (InvalidRequest, ("weather",)),
        (InvalidRequest, ("overview", None, "soon")),
        (InvalidRequest, ("task", "nul\x00")),
        (InvalidRequest, ("task", "\ud800")),
        (InvalidRequest, ("task", "x" * 10_000_000)),
    ],
)
def test_analytics_refuse_what_they_cannot_answer_in_one_short_sentence(session, error, arguments):
    with pytest.raises(error) as refused:
        analytics(session, *arguments)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("filters", [{"status": "happy"}, {"limit": 0}, {"limit": 1001}, {"name": ""}, {"since": "x"}])
def test_a_list_that_cannot_be_is_refused(session, filters):
    with pytest.raises(InvalidRequest):
        records.list_tasks(session, **filters)


# --- workers that a task was lost with ---------------------------------------------------------------------------


def add_events(session, *events):
    for worker_id, kind in events:
        session.add(TaskEvent(task_id="task-1", worker_id=worker_id, kind=kind))
        session.flush()


def add_crew(session, status="offline", run=None, conclusion=None):
    """Two workers of one run, which came to such an end."""
    run = run or {"repository": "owner/name", "run_id": "123", "attempt": "1"}
    session.add(
        Burst(
            burst_id="b" * 32, origin="github-actions", num_workers=2, runtime_minutes=30, minutes_planned=60,
            run=run | ({"conclusion": conclusion} if conclusion else {}),
        )
    )  # fmt: skip
    for index in ("1", "2"):
        add_worker(session, f"worker-123-1-{index}", status, run=run | {"index": index})


def test_a_task_whose_worker_was_cancelled_says_so(session):
    add_crew(session, conclusion="cancelled")
    add_worker(session, "next")
    add_task(session, "task-1", "succeeded", worker_id="next")
    add_events(session, ("worker-123-1-2", "started"), ("next", "started"), ("next", "succeeded"))
    assert records.show_task(session, "task-1")["lost_with"] == ["run 123, attempt 1, worker 2: cancelled"]


@pytest.mark.parametrize(("status", "how"), [("lost", "lost"), ("offline", "left")])
def test_a_worker_whose_run_says_nothing_is_lost_or_left(session, status, how):
    add_crew(session, status)
    add_task(session, "task-1", "started", worker_id="worker-123-1-1")
    add_events(session, ("worker-123-1-1", "started"))
    assert records.show_task(session, "task-1")["lost_with"] == [f"run 123, attempt 1, worker 1: {how}"]


def test_a_worker_of_another_attempt_was_not_cancelled_with_this_one(session):
    add_crew(session, conclusion="cancelled")
    run = {"repository": "owner/name", "run_id": "123", "attempt": "2", "index": "1"}
    add_worker(session, "worker-123-2-1", "lost", run=run)
    add_task(session, "task-1", "started", worker_id="worker-123-2-1")
    add_events(session, ("worker-123-2-1", "started"))
    assert records.show_task(session, "task-1")["lost_with"] == ["run 123, attempt 2, worker 1: lost"]


def test_a_burst_on_one_machine_is_named_by_its_id(session):
    add_crew(session, run={"burst_id": "b" * 32})
    add_task(session, "task-1", "started", worker_id="worker-123-1-2")
    add_events(session, ("worker-123-1-2", "started"))
    assert records.show_task(session, "task-1")["lost_with"] == ["burst bbbbbbbbbbbb, worker 2: left"]


@pytest.mark.parametrize("ending", ["succeeded", "failed", "retrying", "ended"])
def test_a_task_that_ended_on_a_worker_was_not_lost_with_it(session, ending):
    add_crew(session, conclusion="cancelled")
    add_task(session, "task-1", "succeeded", worker_id="worker-123-1-1")
    add_events(session, ("worker-123-1-1", "started"), ("worker-123-1-1", ending))
    assert records.show_task(session, "task-1")["lost_with"] == []


def test_a_task_that_runs_is_not_lost(session):
    add_crew(session, "active")
    add_task(session, "task-1", "started", worker_id="worker-123-1-1")
    add_events(session, ("worker-123-1-1", "started"))
    assert records.show_task(session, "task-1")["lost_with"] == []
