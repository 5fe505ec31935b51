"""What a worker tells NATS: of itself, and of what its tasks do, whatever the pool and whatever becomes of NATS."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from howl.config import Settings
from howl.worker.events.publisher import _within
from tests.helpers import eavesdropper
from tests.helpers.listener import Listener
from tests.helpers.support import Process, eventually, taken_away

RUN = ["task-received", "task-started", "task-succeeded"]
StartWorker = Callable[..., Process]


@pytest.fixture
def told(settings: Settings) -> Listener:
    return Listener(settings).keep()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_a_task_does_is_told_in_order_with_celerys_own_fields(
    pool: str, start_worker: StartWorker, app: Celery, told: Listener
) -> None:
    worker = start_worker("w1", "--pool", pool, "--concurrency", "1")
    sent = app.send_task("tests.add", (40,), {"y": 2})
    received, started, succeeded = eventually(lambda: len(seen := told.of_task(sent.id)) == 3 and seen)
    assert kinds([received, started, succeeded]) == RUN
    assert (received["name"], received["args"], received["kwargs"]) == ("tests.add", "(40,)", "{'y': 2}")
    assert (received["root_id"], received["parent_id"], received["retries"]) == (sent.id, None, 0)
    assert (received["eta"], received["expires"]) == (None, None)
    assert (succeeded["result"], 0 < succeeded["runtime"] < 30) == ("42", True)
    for event in (received, started, succeeded):
        assert (event["hostname"], event["pid"], event["utcoffset"]) == ("celery@w1", worker.pid, 0)
        assert abs(event["timestamp"] - time.time()) < 60
    assert received["clock"] < started["clock"] < succeeded["clock"]


def test_a_failure_a_retry_and_a_revoked_task_are_told(
    start_worker: StartWorker, app: Celery, told: Listener, tmp_path: Path
) -> None:
    start_worker("w1", "--concurrency", "1")
    failed = app.send_task("tests.fail", ("as told",))
    retried = app.send_task("tests.flaky", (str(tmp_path / "runs"), 1))
    expired = app.send_task("tests.noop", expires=-1)
    eventually(lambda: "task-succeeded" in kinds(told.of_task(retried.id)) and told.of_task(expired.id))
    end = told.of_task(failed.id)[-1]
    assert (end["type"], end["exception"]) == ("task-failed", "ValueError('as told')")
    assert "Traceback" in end["traceback"]
    # The second run is on the queue before Celery says that the first has ended.
    assert sorted(kinds(told.of_task(retried.id))) == sorted([*RUN[:2], "task-retried", *RUN])
    assert [(event["type"], event["expired"]) for event in told.of_task(expired.id)] == [("task-revoked", True)]


def test_many_events_travel_in_one_message_that_says_what_the_workers_clock_says(
    start_worker: StartWorker, app: Celery, told: Listener, settings: Settings
) -> None:
    start_worker("w.1", "--concurrency", "2")
    sent = [app.send_task("tests.noop") for _ in range(100)]
    eventually(lambda: told.kinds().count("task-succeeded") == len(sent))
    messages = told.messages()
    assert {message.subject for message in messages} == {f"{settings.subject_prefix}.events.howl"}
    batches = [message for message in messages if "worker" not in message.events[0]]
    assert sum(len(batch.events) for batch in batches) == 3 * len(sent)
    assert len(batches) < len(sent)
    for message in messages:
        newest = max(event["timestamp"] for event in message.events)
        assert 0 <= float(message.headers["Howl-Sent"]) - newest < 60


def test_a_worker_is_online_first_and_offline_last_with_all_that_its_last_task_did_in_between(
    start_worker: StartWorker, app: Celery, told: Listener, tmp_path: Path
) -> None:
    worker = start_worker("w1", "--concurrency", "1", "--tags", "gpu", "--queues", "celery", "--runtime", "1h")
    end = tmp_path / "end"
    sent = app.send_task("tests.report", (str(end),))
    eventually(lambda: "task-started" in told.kinds())
    worker.signal(signal.SIGTERM)
    eventually(lambda: "Taking no more tasks" in worker.output)
    end.touch()
    assert worker.wait() == 0
    events = told.events()
    assert kinds(told.of_task(sent.id)) == RUN
    assert (events[0]["type"], events[-1]["type"]) == ("worker-online", "worker-offline")
    assert [kind for kind in told.kinds() if kind.startswith("worker-")] == ["worker-online", "worker-offline"]
    described = events[0]["worker"]
    assert {"tags", "queues", "origin", "concurrency", "version", "run", "deadline_at"} <= set(described)
    assert (described["tags"], described["status"], described["deadline_at"] is None) == (["gpu"], "active", False)
    assert events[-1]["worker"]["status"] == "offline"


@pytest.mark.timeout(90)
def test_heartbeats_do_not_wait_for_an_answer_that_does_not_come(start_worker: StartWorker, settings: Settings) -> None:
    told = Listener(settings).keep(answering=False)
    start_worker("w1", env={"HOWL_HEARTBEAT_INTERVAL": "0.2"})
    eventually(lambda: "worker-online" in told.kinds())
    # One for each time that it gave up waiting would take a minute.
    eventually(lambda: kinds(told.events()).count("worker-heartbeat") >= 15, timeout=20)


def test_told_not_to_a_worker_tells_of_itself_alone(start_worker: StartWorker, app: Celery, told: Listener) -> None:
    worker = start_worker("w1", "--concurrency", "1", env={"HOWL_TASK_EVENTS": "0"})
    assert "task events: OFF" in worker.output
    app.send_task("tests.noop")
    eventually(lambda: "succeeded in" in worker.output)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert told.kinds() == ["worker-online", "worker-offline"]


def test_remote_control_switches_task_events_off_and_on(start_worker: StartWorker, app: Celery, told: Listener) -> None:
    worker = start_worker("w1", "--concurrency", "1")
    assert "task events: ON" in worker.output
    answer = {"reply": True, "timeout": 10, "limit": 1}
    (said,) = app.control.disable_events(**answer)
    assert said == {"celery@w1": {"ok": "task events disabled"}}
    unseen = app.send_task("tests.noop")
    eventually(lambda: f"{unseen.id}] succeeded" in worker.output)
    (said,) = app.control.enable_events(**answer)
    assert said == {"celery@w1": {"ok": "task events enabled"}}
    seen = app.send_task("tests.noop")
    eventually(lambda: kinds(told.of_task(seen.id)) == RUN)
    assert told.of_task(unseen.id) == []


def test_remote_control_has_a_worker_send_a_heartbeat(start_worker: StartWorker, app: Celery, told: Listener) -> None:
    start_worker("w1", env={"HOWL_HEARTBEAT_INTERVAL": "600"})
    eventually(lambda: told.kinds() == ["worker-online"])
    app.control.heartbeat()
    eventually(lambda: "worker-heartbeat" in kinds(told.events()))


def test_heartbeats_are_sent_as_often_as_told_and_while_a_solo_workers_loop_is_blocked(
    start_worker: StartWorker, app: Celery, told: Listener, tmp_path: Path
) -> None:
    start_worker("w1", "--pool", "solo", env={"HOWL_HEARTBEAT_INTERVAL": "0.5"})
    app.send_task("tests.report", (str(tmp_path / "end"),))
    eventually(lambda: "task-started" in told.kinds())
    before = len(told.events())
    eventually(lambda: len(told.events()) >= before + 4)
    beats = [event["timestamp"] for event in told.events() if event["type"] == "worker-heartbeat"]
    assert min(later - earlier for earlier, later in pairwise(beats)) > 0.3, "told twice"
    (tmp_path / "end").touch()


def test_celerys_own_events_stay_away_from_redis(
    start: Callable[..., Process], worker_env: dict[str, str], settings: Settings, app: Celery, told: Listener
) -> None:
    with redis.Redis.from_url(settings.redis()) as client, client.pubsub() as heard:
        heard.psubscribe(f"*{settings.key_prefix}*celeryev*")
        start("-A", "howl", "worker", "-n", "w1", "-c", "1", "-E", env=worker_env, program="celery")
        sent = app.send_task("tests.noop")
        eventually(lambda: kinds(told.of_task(sent.id)) == RUN)
        answers = iter(lambda: heard.get_message(timeout=0.5), None)
        assert [answer["type"] for answer in answers] == ["psubscribe"]
        assert client.pubsub_channels(f"*{settings.key_prefix}*celeryev*") == []


def test_with_no_nats_celerys_stock_events_are_sent_when_asked_for(
    start: Callable[..., Process], worker_env: dict[str, str], app: Celery
) -> None:
    seen: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        consumed = receiver.itercapture(limit=None, timeout=45, wakeup=False)
        next(consumed)
        env = worker_env | {"HOWL_NATS_URL": ""}
        start("-A", "howl", "worker", "-n", "w1", "-c", "1", "-E", env=env, program="celery")
        sent = app.send_task("tests.noop")
        deadline = time.monotonic() + 45
        for _ in receiver.consume(limit=None, timeout=45, wakeup=False):
            if "task-succeeded" in kinds(seen) or time.monotonic() > deadline:
                break
    assert kinds([event for event in seen if event.get("uuid") == sent.id]) == RUN
    assert "worker-online" in kinds(seen)


def test_events_wait_for_a_nats_that_is_away_and_tasks_do_not(
    start_worker: StartWorker, app: Celery, told: Listener, stack: Any
) -> None:
    worker = start_worker("w1", "--concurrency", "1")
    eventually(lambda: told.kinds() == ["worker-online"])
    with taken_away(stack.nats):
        sent = app.send_task("tests.noop")
        eventually(lambda: f"{sent.id}] succeeded" in worker.output)
    eventually(lambda: kinds(told.of_task(sent.id)) == RUN)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert told.kinds() == ["worker-online", *RUN, "worker-offline"]


def test_a_worker_that_starts_while_nats_is_away_is_online_when_it_is_back(
    start_worker: StartWorker, told: Listener, stack: Any
) -> None:
    with taken_away(stack.nats):
        worker = start_worker("w1")
        eventually(lambda: "NATS cannot be used" in worker.output)
    eventually(lambda: told.kinds() == ["worker-online"])


def test_a_worker_leaves_within_seconds_although_nats_is_away(start_worker: StartWorker, told: Listener, stack: Any):
    worker = start_worker("w1")
    eventually(lambda: told.kinds() == ["worker-online"])
    with taken_away(stack.nats):
        worker.signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    assert told.kinds() == ["worker-online"]


def test_what_was_told_before_anybody_kept_it_is_told_again(
    start_worker: StartWorker, app: Celery, settings: Settings
) -> None:
    worker = start_worker("w1", "--concurrency", "1")
    sent = app.send_task("tests.noop")
    eventually(lambda: f"{sent.id}] succeeded" in worker.output)
    told = Listener(settings).keep()
    eventually(lambda: told.kinds() == ["worker-online", *RUN])


def test_a_lost_broker_connection_is_no_reason_to_say_that_the_worker_left(
    start_worker: StartWorker, app: Celery, told: Listener
) -> None:
    start_worker("w1", "--concurrency", "1", env={"HOWL_TASK_MODULES": "tests.tasks,tests.helpers.eavesdropper"})
    app.control.broadcast("lose_connection", reply=True, timeout=10, limit=1)
    sent = app.send_task("tests.noop")
    eventually(lambda: kinds(told.of_task(sent.id)) == RUN)
    assert told.kinds() == ["worker-online", *RUN]


def test_celerys_signal_of_a_heartbeat_still_comes_from_its_loop(
    start_worker: StartWorker, told: Listener, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    modules = {"HOWL_TASK_MODULES": "tests.tasks,tests.helpers.eavesdropper", eavesdropper.VARIABLE: str(notes)}
    worker = start_worker("w1", "--concurrency", "1", env=modules | {"HOWL_HEARTBEAT_INTERVAL": "0.2"})
    seen = eventually(lambda: [line for line in notes.read_text().splitlines() if "heartbeat_sent" in line])
    note = json.loads(seen[0])
    assert (note["pid"], note["thread"]) == (worker.pid, "MainThread")


@pytest.mark.parametrize("how", ["restarted", "hanging"])
def test_a_nats_that_is_restarted_or_hangs_under_load_costs_no_event_and_doubles_none(
    how: str, start_worker: StartWorker, app: Celery, told: Listener, stack: Any
) -> None:
    start_worker("w1", "--concurrency", "2")
    sent = []
    for number in range(300):
        sent.append(app.send_task("tests.noop").id)
        if number in (100, 200):
            eventually(lambda: "task-succeeded" in told.kinds())
            _disturb(stack.nats, how)
    eventually(lambda: told.kinds().count("task-succeeded") == len(sent))
    seen = Counter((event["uuid"], event["type"]) for event in told.events() if "uuid" in event)
    assert seen == Counter((task_id, kind) for task_id in sent for kind in RUN)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_who_waits_for_something_can_be_told_to_stop_just_when_it_comes(turns: int) -> None:
    """A heart that beat once more would never stop: the worker would neither say goodbye nor connect again."""

    async def stop_late() -> None:
        event = asyncio.Event()
        waiting = asyncio.create_task(_within(30, event))
        await asyncio.sleep(0.01)  # until it waits
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        was_told = waiting.cancel()  # or it had ended
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled() == was_told

    asyncio.run(stop_late())


def _disturb(nats: Any, how: str) -> None:
    if how == "restarted":
        with taken_away(nats):
            return
    os.kill(nats.pid, signal.SIGSTOP)
    time.sleep(4)  # longer than one waits for an answer
    os.kill(nats.pid, signal.SIGCONT)
