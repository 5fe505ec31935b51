"""Workers' events at Celery's event exchange: what stock receivers, `celery events` and Flower make of them."""

import threading
import time

import pytest
from celery.events.state import State

from howl.server.bridge.bridge import Bridge
from howl.server.bridge.rebroadcast import SILENCE
from tests.helpers import wire
from tests.helpers.support import PATIENCE, eventually


@pytest.fixture
def receiver(app):
    """What a stock receiver hears, and the state it keeps, as Flower does."""
    state, heard, ready = State(), [], threading.Event()

    def hear(event: dict) -> None:
        heard.append(dict(event))
        state.event(event)

    with app.connection() as connection:
        receiving = app.events.Receiver(connection, handlers={"*": hear, "ready": lambda _: ready.set()})
        # In one go: whoever stops to look whether it is to end misses what is published meanwhile.
        thread = threading.Thread(target=receiving.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        with app.events.default_dispatcher() as dispatcher:
            eventually(lambda: dispatcher.send("ready") or ready.is_set())
        yield state, heard
        receiving.should_stop = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def bridge(settings):
    made = Bridge(settings)
    yield made
    made.redis.close()


def test_a_stock_receiver_sees_a_remote_worker_and_its_task(server, receiver, settings):
    state, heard = receiver
    wrong = 600.0
    received = wire.task("received", "t1", args="(1,)", name="tests.add", timestamp=time.time() + wrong)
    wire.publish(
        settings,
        [wire.worker("online") | {"timestamp": time.time() + wrong}],
        [received, wire.task("started", "t1", timestamp=time.time() + wrong)],
        clock=wrong,
    )
    task = eventually(lambda: (found := state.tasks.get("t1")) and found.state == "STARTED" and found)
    assert (task.name, task.args, task.worker.hostname) == ("tests.add", "(1,)", "celery@w1")
    assert abs(task.received - time.time()) < 30
    assert state.workers["celery@w1"].alive
    wire.publish(settings, [wire.task("succeeded", "t1", result="3", runtime=0.25)])
    eventually(lambda: state.tasks["t1"].state == "SUCCESS")
    assert (task.result, task.runtime) == ("3", 0.25)
    assert {event["hostname"] for event in heard} == {"celery@w1"}
    wire.publish(settings, [wire.worker("offline")])
    eventually(lambda: not state.workers["celery@w1"].alive)


def test_progress_and_logs_are_heard_and_leave_a_task_started(server, receiver, settings):
    state, heard = receiver
    said = [wire.task("received", "t1"), wire.task("started", "t1"), wire.task("progress", "t1", done=1, total=2),
            wire.task("log", "t1", lines=["a line"])]  # fmt: skip
    wire.publish(settings, said)
    eventually(lambda: len(heard) == 4)
    assert [event["type"] for event in heard[2:]] == ["howl-progress", "howl-log"]
    assert (heard[2]["uuid"], heard[2]["done"], heard[3]["lines"]) == ("t1", 1, ["a line"])
    assert state.tasks["t1"].state == "STARTED"


def test_nothing_goes_through_that_would_break_a_receiver(bridge, receiver, settings):
    state, heard = receiver
    evil = {"alive": 5, "heartbeats": "x", "event": 1, "children": 7, "local_received": "noon", "state": ["x"]}
    bridge.take([
        wire.letter(settings, wire.worker("heartbeat") | evil, wire.worker("heartbeat") | {"freq": "often"},
                    wire.worker("heartbeat") | {"clock": "later"}),
        wire.letter(settings, wire.task("received", "t1") | evil, wire.task("succeeded", "t1", runtime="long"),
                    wire.task("failed", "t1", exception={"a": 1}), wire.task("started", "t1") | evil),
    ])  # fmt: skip
    eventually(lambda: len(heard) == 4)
    assert [name for event in heard for name in evil if event.get(name) == evil[name]] == []
    assert state.workers["celery@w1"].alive
    assert (state.tasks["t1"].state, list(state.tasks["t1"].children)) == ("STARTED", [])


def test_a_sign_of_life_that_waited_for_a_bridge_revives_nobody(bridge, receiver, settings, worker_row):
    _, heard = receiver
    bridge.take([wire.letter(settings, wire.worker("heartbeat"), taken=time.time() - settings.lost_after - 1)])
    bridge.take([wire.letter(settings, wire.task("received", "t1"), taken=time.time() - 3600)])
    eventually(lambda: heard)
    assert [event["type"] for event in heard] == ["task-received"]
    assert worker_row("w1") is not None


def test_while_nobody_listens_hardly_anything_is_published(bridge, settings):
    def published() -> int:
        return bridge.redis.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]

    before, began = published(), time.monotonic()
    for number in range(100):
        bridge.take([wire.letter(settings, wire.task("started", "t1"), sequence=number)])
    assert 1 <= published() - before <= 1 + (time.monotonic() - began) / SILENCE


def test_celery_events_shows_remote_workers_and_tasks(server, start, env, settings):
    shown = start("-A", "howl", "events", "--dump", env=env, program="celery")
    eventually(lambda: "starting capture" in shown.output)

    def told() -> bool:
        wire.publish(settings, [wire.worker("heartbeat"), wire.task("received", "t1", name="far.away"),
                                wire.task("succeeded", "t1", result="'done'")])  # fmt: skip
        return "far.away(t1)" in shown.output and "result='done'" in shown.output and "heartbeat" in shown.output

    eventually(told)
    assert shown.popen.poll() is None
