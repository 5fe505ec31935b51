"""Events of tasks: what becomes of them in the record and in Redis, whoever says what, how often, and in what order."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import permutations

import nats
import pytest
from nats.js.api import RetentionPolicy, StreamConfig
from nats.js.errors import NotFoundError
from sqlalchemy import func, select, update

from howl.connections import postgres
from howl.connections.nats import Connection
from howl.connections.redis import redis_client
from howl.models import TaskEvent
from howl.server.bridge import task_events
from howl.server.bridge.bridge import Bridge
from howl.server.bridge.events import LINE_LIMIT, LINES_LIMIT
from howl.server.maintenance.keeper import Keeper
from tests.helpers import wire
from tests.helpers.servers import serving
from tests.helpers.support import PATIENCE, eventually, taken_away

STORY = [
    wire.task("received", "t1"), wire.task("started", "t1"),
    wire.task("progress", "t1", done=1, total=2, note="half", number=1),
    wire.task("log", "t1", lines=["a", "b"], dropped=3, number=2),
    wire.task("succeeded", "t1", result="42", runtime=0.5),
]  # fmt: skip


@pytest.fixture
def bridge(settings):
    made = Bridge(settings)
    yield made
    made.redis.close()


@pytest.fixture
def rows(settings):
    """Events of a task as they are recorded now, or of all tasks."""

    def _rows(task_id: str | None = None) -> list[TaskEvent]:
        found = select(TaskEvent).order_by(TaskEvent.event_id)
        with postgres.session(settings.database()) as session:
            return list(session.scalars(found if task_id is None else found.where(TaskEvent.task_id == task_id)))

    return _rows


@pytest.fixture
def live(settings):
    """A task's progress as it is shown now."""
    with redis_client(settings) as client:
        yield lambda task_id: json.loads(client.get(settings.key(f"progress:{task_id}")) or "null")


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_what_a_worker_says_of_a_task_is_recorded_but_for_what_its_outcome_says(server, settings, rows, live):
    wire.publish(settings, STORY)
    eventually(lambda: len(rows()) == 3)
    assert [(row.kind, row.worker_id, row.data) for row in rows("t1")] == [
        ("received", "w1", {"name": "tests.noop", "retries": 0}),
        ("progress", "w1", {"done": 1, "total": 2, "note": "half"}),
        ("log", "w1", {"lines": ["a", "b"], "dropped": 3}),
    ]
    shown = eventually(lambda: live("t1"))
    assert (shown["done"], shown["total"], shown["note"], shown["worker_id"]) == (1, 2, "half", "w1")
    happened = datetime.fromtimestamp(STORY[2]["timestamp"], UTC)
    assert abs(datetime.fromisoformat(shown["at"]) - happened) < timedelta(seconds=30)


def test_what_is_read_twice_is_recorded_once(bridge, settings, rows):
    once = [wire.letter(settings, *STORY), wire.letter(settings, *STORY, sequence=2)]
    bridge.take(once)
    before = [row.source for row in rows()]
    assert len(before) == 6
    bridge.take(once[::-1] + once)
    assert [row.source for row in rows()] == before


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
def test_progress_moves_only_forward_whatever_order_it_is_read_in(bridge, settings, live, together):
    now = time.time()
    for task_id, order in enumerate(permutations(range(3))):
        said = [
            wire.letter(settings, wire.task("progress", str(task_id), done=at), sequence=9 + at, taken=now + at)
            for at in order
        ]
        for batch in [said] if together else [[each] for each in said]:
            bridge.take(batch)
        assert live(task_id)["done"] == 2


def test_progress_is_not_kept_for_ever(bridge, settings):
    bridge.take([wire.letter(settings, *STORY)])
    assert 0 < bridge.redis.ttl(settings.key("progress:t1")) <= 3600


def test_progress_is_shown_although_somebody_left_something_else_in_its_place(bridge, settings, live, rows):
    bridge.redis.lpush(settings.key("progress:t1"), "x")
    bridge.take([wire.letter(settings, *STORY)])
    assert live("t1")["done"] == 1


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [10, -10])
def test_a_wrong_clock_makes_nobody_lost_and_no_time_wrong(server, settings, rows, worker_row, minutes):
    clock = minutes * 60.0
    sometime = time.time() + clock - 5
    wire.publish(settings, [wire.task("received", "t1", timestamp=sometime)], clock=clock)
    event = eventually(lambda: rows("t1"))[0]
    assert timedelta(seconds=4) < datetime.now(UTC) - event.at < timedelta(seconds=30)
    until = time.monotonic() + 2 * settings.lost_after
    while time.monotonic() < until:
        wire.publish(settings, [wire.worker("heartbeat") | {"timestamp": time.time() + clock}], clock=clock)
        time.sleep(0.3)
        assert worker_row("w1") is None or worker_row("w1").status == "active"
    assert datetime.now(UTC) - worker_row("w1").last_heartbeat_at < timedelta(seconds=settings.lost_after)


@pytest.mark.parametrize(
    ("stated", "seconds_ago"), [(1e9, 0), (-1e9, 86_400), (-30, 30), (0, 0)], ids=["future", "past", "waited", "now"]
)
def test_an_event_happened_before_its_message_and_not_long_before(bridge, settings, rows, stated, seconds_ago):
    now = 1_700_000_000.0
    event = wire.task("received", "t1", timestamp=now + 600 + stated)
    bridge.take([wire.letter(settings, event, taken=now, sent=repr(now + 600))])
    assert rows("t1")[0].at == datetime.fromtimestamp(now - seconds_ago, UTC)


@pytest.mark.parametrize("sent", [None, "", "nan", "-inf", "soon", "\ud800"])
def test_who_does_not_say_what_its_clock_says_is_taken_at_natss(bridge, settings, rows, sent):
    now = 1_700_000_000.0
    bridge.take([wire.letter(settings, wire.task("received", "t1", timestamp=5), taken=now, sent=sent)])
    assert rows("t1")[0].at == datetime.fromtimestamp(now, UTC)


# --- bad input ------------------------------------------------------------------------------------------------------

GOOD = wire.task("progress", "good", done=1)
WRONG = {
    "no object": 7,
    "no type": {},
    "an unknown type": GOOD | {"type": "task-king"},
    "a type that is a list": GOOD | {"type": ["task-progress"]},
    "no task": {name: value for name, value in GOOD.items() if name != "uuid"},
    "a huge id": GOOD | {"uuid": "x" * 500_000},
    "an id with NUL": GOOD | {"uuid": "a\x00b"},
    "an id of many lines": GOOD | {"uuid": "a\nERROR b"},
    "half a character": GOOD | {"uuid": "a\ud800"},
    "no worker": {name: value for name, value in GOOD.items() if name != "hostname"},
    "no number": GOOD | {"done": "1"},
    "not a number": GOOD | {"done": float("nan")},
    "a number without end": GOOD | {"total": float("inf")},
    "a number too large": GOOD | {"done": 10**400},
    "no progress": {name: value for name, value in GOOD.items() if name != "done"},
    "a deep note": GOOD | {"note": [[[["x"]]]]},
    "no time": GOOD | {"timestamp": "noon"},
    "a time without end": GOOD | {"timestamp": float("inf")},
    "lines that are none": wire.task("log", "t", lines=["a", 5]),
    "no lines": wire.task("log", "t"),
    "no name": {name: value for name, value in wire.task("received", "t").items() if name != "name"},
    "a worker under another's name": wire.worker("online") | {"hostname": "celery@w2"},
    "a worker of another id": wire.worker("online", worker_id="w2") | {"hostname": "celery@w1"},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_event_is_ignored_with_one_short_line_and_its_neighbours_are_not(
    kind, bridge, settings, rows, worker_row, caplog
):
    bridge.take([wire.letter(settings, GOOD, WRONG[kind], GOOD)])
    assert [row.task_id for row in rows()] == ["good", "good"]
    assert worker_row("w1") is None
    assert worker_row("w2") is None
    (line,) = warnings(caplog)
    assert "ignored" in line
    assert len(line) < 400
    assert "\n" not in line


def test_a_worker_that_says_too_much_is_a_few_lines(bridge, settings, caplog):
    for number in range(200):
        bridge.take([wire.letter(settings, 7, sequence=number)])
    assert 1 < len(warnings(caplog)) < 50


def test_long_lines_and_texts_are_shortened_and_what_cannot_be_stored_is_replaced(bridge, settings, rows):
    long = wire.task("log", "t1", lines=["x" * 1_000_000, "NUL \x00 and half \ud800"], dropped=0)
    many = wire.task("log", "t2", lines=["y" * 1999] * 500, dropped=0)
    bridge.take([wire.letter(settings, long, many)])
    first, second = rows("t1")[0].data["lines"]
    assert (len(first), first[-1]) == (LINE_LIMIT, "…")
    assert second == "NUL \ufffd and half \ufffd"
    assert sum(map(len, rows("t2")[0].data["lines"])) <= LINES_LIMIT
    assert len(rows("t2")[0].data["lines"]) > 30


@pytest.mark.parametrize("header", [b"garbage", b"NATS/1.0 \xff\xfe\r\n\r\n", b"NATS/1.0 503\r\n\r\n",
                                    b"NATS/1.0\r\n\xff: \xfe\r\n\r\n"], ids=repr)  # fmt: skip
def test_no_header_of_a_message_makes_the_bridge_deaf(header, server, settings, rows):
    wire.publish(settings, STORY)
    eventually(lambda: len(rows("t1")) == 3)
    asyncio.run(_publish_with(settings, header))
    wire.publish(settings, [wire.task("received", "t2")])
    eventually(lambda: rows("t2"))
    eventually(lambda: asyncio.run(_unread(settings)) == 0)
    assert "stopped" not in server.output


async def _publish_with(settings, header: bytes) -> None:
    client = await nats.connect(settings.nats())
    try:
        subject = f"{settings.subject_prefix}.events.crew".encode()
        await client._send_command(b"HPUB %s %d %d\r\n%s[]\r\n" % (subject, len(header), len(header) + 2, header))
        await client.flush()
    finally:
        await client.close()


async def _unread(settings) -> int:
    client = await nats.connect(settings.nats())
    try:
        return (await client.jetstream().stream_info(f"{settings.subject_prefix}-events")).state.messages
    finally:
        await client.close()


# --- faults ---------------------------------------------------------------------------------------------------------

#: Tasks of the load, each of a worker of its own, and seconds between two messages.
TASKS, PAUSE = 20, 0.002


class Load(threading.Thread):
    """Workers that speak until told to stop; each message is stored once, whatever becomes of NATS meanwhile."""

    def __init__(self, settings) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.enough = threading.Event()
        self.steps = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._speak())
        except BaseException as error:  # noqa: BLE001  # it is raised again where the test waits
            self.failure = error

    async def _speak(self) -> None:
        client = await Connection().open(self.settings, "load", lasting=True, reconnect_time_wait=0.2)
        try:
            while not self.enough.is_set():
                for task in range(TASKS):
                    await self._say(client.jetstream(), task)
                    await asyncio.sleep(PAUSE)
                self.steps += 1
        finally:
            await client.close()

    async def _say(self, stream, task: int) -> None:
        task_id, worker_id = f"t{task}", f"w{task}"
        events = [wire.task("progress", task_id, worker_id, done=self.steps), wire.task("started", task_id, worker_id)]
        subject = f"{self.settings.subject_prefix}.events.crew"
        await wire.stored(stream, subject, json.dumps(events).encode(), f"{task}-{self.steps}")

    def end(self) -> dict[str, int]:
        """How many rows there should be of each task."""
        assert self.is_alive(), self.failure
        self.enough.set()
        self.join(PATIENCE)
        assert self.failure is None
        return {f"t{task}": self.steps for task in range(TASKS)}


@pytest.fixture
def load(settings):
    started = Load(settings)
    started.start()
    yield started
    started.enough.set()


def counted(settings) -> dict[str, int]:
    with postgres.session(settings.database()) as session:
        found = select(TaskEvent.task_id, func.count()).group_by(TaskEvent.task_id)
        return dict(session.execute(found).all())


def grows(settings) -> None:
    """Wait until more is recorded than now."""
    before = sum(counted(settings).values())
    eventually(lambda: sum(counted(settings).values()) > before)


def test_a_bridge_killed_under_load_counts_nothing_twice_and_loses_nothing(settings, start, env, load, live):
    for rest in (0.3, 0.05, 0.2):
        server = serving(start("server", env=env))
        grows(settings)
        time.sleep(rest)
        server.end()
    serving(start("server", env=env))
    grows(settings)
    expected = load.end()
    eventually(lambda: asyncio.run(_unread(settings)) == 0)
    assert counted(settings) == expected
    assert {live(task_id)["done"] for task_id in expected} == {load.steps - 1}


def test_nats_restarted_under_load_loses_nothing_that_it_had_taken(settings, server, stack, load):
    for _ in range(2):
        grows(settings)
        with taken_away(stack.nats):
            time.sleep(0.3)
    grows(settings)
    expected = load.end()
    eventually(lambda: asyncio.run(_unread(settings)) == 0)
    assert counted(settings) == expected


def test_two_bridges_share_the_work(settings, start, env, load):
    servers = [serving(start("server", env=env)) for _ in range(2)]
    for _ in range(10):
        grows(settings)
    expected = load.end()
    eventually(lambda: asyncio.run(_unread(settings)) == 0)
    assert counted(settings) == expected
    assert not [server for server in servers if "stopped" in server.output]


def test_a_day_s_events_wait_for_a_bridge_that_is_away(settings, start, env, rows):
    first = serving(start("server", env=env))
    wire.publish(settings, [wire.task("received", "before")])
    eventually(lambda: rows("before"))
    first.end()
    wire.publish(settings, *([wire.task("received", f"t{number}")] for number in range(300)))
    serving(start("server", env=env))
    eventually(lambda: len(rows()) == 301)


def test_postgresql_away_loses_no_event(settings, server, stack, rows):
    with taken_away(stack.postgres):
        wire.publish(settings, STORY)
        eventually(lambda: "bridge stopped" in server.output)
    eventually(lambda: len(rows("t1")) == 3)


def test_redis_away_keeps_nothing_from_being_recorded(settings, bridge, stack, rows, live, monkeypatch, caplog):
    with taken_away(stack.redis):
        bridge.take([wire.letter(settings, *STORY)])
        bridge.take([wire.letter(settings, *STORY, sequence=2)])
    assert len(rows("t1")) == 6
    assert len([line for line in warnings(caplog) if "cannot be shown" in line]) == 1
    bridge.next_show = 0.0
    bridge.take([wire.letter(settings, *STORY, sequence=3)])
    assert live("t1")["done"] == 1


def test_an_older_version_s_stream_is_made_anew(settings, start, env, rows):
    asyncio.run(_older_stream(settings))
    serving(start("server", env=env))
    eventually(lambda: asyncio.run(_retention(settings)) == RetentionPolicy.WORK_QUEUE)
    wire.publish(settings, STORY)
    eventually(lambda: len(rows("t1")) == 3)
    eventually(lambda: asyncio.run(_unread(settings)) == 0)


async def _older_stream(settings) -> None:
    client = await nats.connect(settings.nats())
    try:
        prefix = settings.subject_prefix
        subjects = [f"{prefix}.events.>"]
        await client.jetstream().add_stream(StreamConfig(name=f"{prefix}-events", subjects=subjects, max_bytes=1 << 20))
        await client.jetstream().publish(f"{prefix}.events.crew", b"[]")
    finally:
        await client.close()


async def _retention(settings) -> RetentionPolicy | None:
    client = await nats.connect(settings.nats())
    try:
        return (await client.jetstream().stream_info(f"{settings.subject_prefix}-events")).config.retention
    except NotFoundError:
        return None  # it is being made anew
    finally:
        await client.close()


# --- forgetting -----------------------------------------------------------------------------------------------------


def test_events_are_forgotten_after_a_week_a_portion_at_a_time(settings, bridge, app, rows, monkeypatch):
    bridge.take([wire.letter(settings, *STORY, sequence=number) for number in range(5)])
    with postgres.session(settings.database()) as session:
        old = TaskEvent.source.not_like("%.4._")
        session.execute(update(TaskEvent).where(old).values(at=func.now() - timedelta(days=7, minutes=1)))
    monkeypatch.setattr(task_events, "PORTION", 8)
    keeper = Keeper(settings, app)
    keeper.forget_events()
    assert len(rows()) == 7
    keeper.forget_events()
    assert [row.source.rpartition(".")[0].rpartition(".")[2] for row in rows()] == ["4"] * 3
    keeper.redis.close()


def test_above_the_limit_logs_are_shown_and_not_kept_and_no_new_worker_is_taken_in(settings, rows, live, worker_row,
                                                                                   caplog):  # fmt: skip
    limited = Bridge(settings.model_copy(update={"record_limit": 1 << 20}))
    limited.take([wire.letter(settings, wire.worker("online", "w1"))])
    for number in range(2, 40):
        log = wire.task("log", "t1", lines=["x" * 2000] * 30, number=number)
        limited.take([wire.letter(settings, log, sequence=number)])
    assert 10 < len(rows()) < 39
    now = time.time()
    progress = wire.task("progress", "t1", done=1, number=99)
    limited.take([wire.letter(settings, progress, wire.worker("heartbeat", "w1", version="9"), sequence=99, taken=now),
                  wire.letter(settings, wire.worker("online", "w2"), worker_id="w2", sequence=100)])  # fmt: skip
    assert live("t1")["done"] == 1
    assert (worker_row("w1").version, worker_row("w2")) == ("9", None)
    assert caplog.text.count("had 1 MB recorded within an hour") == 1
    limited.redis.close()
