"""What is said of a task whose run was broken off: it waits again, and no worker has it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from howl.config import Settings
from howl.connections.postgres import session
from howl.connections.redis import redis_client
from howl.models import Task
from howl.outcomes import Outcome, requeued
from howl.queries import overview, records, statistics, task_events
from howl.server.recorder.outcome_streams import Received
from howl.server.recorder.recorder import Recorder
from howl.submission import TaskRequest, cancel, submit
from howl.worker.consumer import adapter
from tests.helpers.support import Process, eventually


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_task_whose_worker_is_gone_is_said_to_wait_and_can_be_cancelled(
    number: signal.Signals, settings: Settings, app: Celery, server: Process, start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:  # fmt: skip
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    diary.touch()
    worker = start_worker("w1", "--concurrency", "1", env={"HOWL_LEASE": "2"})
    with session(settings.database()) as opened:
        task_id = submit(TaskRequest(name="tests.gated", args=[str(diary), str(gate)]), opened, app)
    eventually(lambda: shown(settings, task_id)["status"] == "started")
    worker.signal(number)
    eventually(lambda: shown(settings, task_id)["status"] == "queued")
    with session(settings.database()) as opened:
        assert overview.house(opened)["running_total"] == 0
        assert overview.house(opened)["running"] == []
        assert [row["task_id"] for row in records.list_tasks(opened, status="queued")] == [task_id]
        assert records.list_tasks(opened, status="started") == []
        (queue,) = statistics.analytics(opened, "queue")["rows"]
        assert (queue["waiting"], queue["running"]) == (1, 0)
        assert shown(settings, task_id)["events"][-1]["kind"] == "requeued"
        assert cancel(task_id, opened, app) == "queued"
    eventually(lambda: shown(settings, task_id)["status"] == "cancelled")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_whose_workers_leave_again_and_again_is_at_last_kept_for_replay(
    pool: str, settings: Settings, app: Celery, server: Process, start_worker: Callable[..., Process], tmp_path: Path
) -> None:
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    diary.touch()

    def leave(name: str) -> None:
        begun = diary.read_text().count("began")
        worker = start_worker(name, "--concurrency", "1", "--pool", pool)
        eventually(lambda: diary.read_text().count("began") > begun)
        worker.signal(signal.SIGQUIT)
        worker.wait()

    with session(settings.database()) as opened, redis_client(settings) as client:
        sent = [submit(TaskRequest(name="tests.gated", args=[str(diary), str(gate)]), opened, app) for _ in range(3)]
        opened.commit()
        leave("w1")
        assert client.hgetall(settings.key("deaths")) == {sent[0].encode(): b"1"}
        waiting = client.lrange(settings.key("celery"), 0, -1)[::-1]
        assert [json.loads(message)["headers"]["id"] for message in waiting] == sent
        client.hset(settings.key("deaths"), sent[0], adapter.DEATHS)
        leave("w2")
        assert client.hkeys(settings.key("dead")) == [sent[0].encode()]
    row = eventually(lambda: (found := shown(settings, sent[0]))["status"] == "dead" and found)
    assert (row["error_type"], "`howl tasks retry`" in row["error_message"]) == ("howl.errors.TaskDied", True)


def shown(settings: Settings, task_id: str) -> dict[str, Any]:
    with session(settings.database()) as opened:
        return records.show_task(opened, task_id)


AT = "2026-11-28T00:00:00+00:00"
W1, W2 = (Outcome(task_id="t1", state="STARTED", at=AT, worker_id=name) for name in ("w1", "w2"))


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
@pytest.mark.parametrize(
    ("story", "status", "worker_id"),
    [
        ((W1, requeued("t1", "w1")), "queued", None),
        ((W1, requeued("t1", "w1"), W1), "started", "w1"),
        ((W1, requeued("t1", "w1"), W2), "started", "w2"),
        # Of two Redis users' streams the second worker's may be read first.
        ((W1, W2, requeued("t1", "w1")), "started", "w2"),
        ((requeued("t1", "w1"), W1), "started", "w1"),
    ],
)
def test_only_the_last_run_being_broken_off_makes_a_task_wait(
    story: tuple[Outcome, ...], status: str, worker_id: str | None, together: bool, settings: Settings, app: Celery
) -> None:
    recorder = Recorder(settings, app)
    items = [Received(f"{1_700_000_000_000 + number}-0", outcome) for number, outcome in enumerate(story)]
    for batch in [items] if together else [[item] for item in items]:
        recorder.record(batch)
    with session(settings.database()) as opened:
        (row,) = task_events.standings(opened, ["t1"])
        assert (row["status"], row["worker_id"]) == (status, worker_id)
        # Or the keeper would push it: a worker's word is not enough for that.
        assert opened.get_one(Task, "t1").status == "started"
