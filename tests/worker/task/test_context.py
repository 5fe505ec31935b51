"""What a task tells while it runs: in real workers with every pool, and in this process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from howl.celery import create_app
from howl.config import load_settings
from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from howl.worker.task import reporter
from howl.worker.task.context import MOST, NOTE, log, progress
from howl.worker.task.lines import BATCH, LINE
from howl.worker.task.reporter import BURST, LAST_WORDS, PACE, RATE
from tests.helpers import reporting_tasks
from tests.helpers.crew import HOWL, ROOT
from tests.helpers.support import Process, eventually

TASKS = "tests.helpers.reporting_tasks"
POOLS = ("prefork", "threads", "solo")

Event = dict[str, Any]
_numbers = count(1)


class Watched:
    """A worker with two places for tasks, and all that its parent is shown."""

    def __init__(self, stack: Stack, pool: str, folder: Path) -> None:
        given = {"redis_url": stack.urls.redis_url, "key_prefix": f"sights{next(_numbers)}:", "home": folder}
        settings = load_settings(**given, task_modules=(TASKS,))
        self.app: Celery = create_app(settings)
        self.app.loader.import_default_modules()
        self.redis = redis.Redis.from_url(settings.redis())
        self.outcomes_key = settings.key("outcomes")
        self.seen = folder / "seen"
        self.seen.touch()
        env = clean_environment(**{f"HOWL_{name.upper()}": str(value) for name, value in given.items()})
        env |= {"HOWL_TASK_MODULES": TASKS, "PYTHONPATH": str(ROOT), reporting_tasks.SEEN: str(self.seen)}
        self.worker = Process(
            [HOWL, "worker", "--name", "w1", "--pool", pool, "--concurrency", "1" if pool == "solo" else "2"],
            env, folder / "worker.log",
        )  # fmt: skip
        eventually(lambda: " ready." in self.worker.output or self.worker.popen.poll() is not None)
        assert self.worker.popen.poll() is None, self.worker.output

    def end(self) -> None:
        self.worker.end()
        self.redis.close()
        self.app.close()

    def send(self, name: str, *args: Any) -> str:
        return str(self.app.tasks[f"sights.{name}"].apply_async(args).id)

    def events(self, task_id: str) -> list[Event]:
        whole = self.seen.read_text().rpartition("\n")[0].splitlines()
        return [event for event in map(json.loads, whole) if event["uuid"] == task_id]

    def outcome(self, task_id: str) -> Event | None:
        """The task's last outcome, when it has one; there is no recorder here that would take it."""
        entries = [json.loads(fields[b"outcome"]) for _, fields in self.redis.xrange(self.outcomes_key)]
        ends = [entry for entry in entries if entry.get("task_id") == task_id and entry["state"] != "STARTED"]
        return ends[-1] if ends else None

    def ended(self, task_id: str) -> Event:
        return eventually(lambda: self.outcome(task_id))


@pytest.fixture(scope="module")
def watch(stack: Stack) -> Iterator[Callable[[str], Watched]]:
    """The worker with the given pool, one for all tests."""
    made: dict[str, Watched] = {}

    def _watch(pool: str) -> Watched:
        if pool not in made:
            made[pool] = Watched(stack, pool, Path(tempfile.mkdtemp(prefix="watched-", dir=stack.home)))
        return made[pool]

    yield _watch
    for watched in made.values():
        watched.end()


@pytest.fixture
def seen() -> Iterator[list[bytes]]:
    """What is shown of a run that goes on in this test."""
    shown: list[bytes] = []
    reporter.begin(shown.append, "here", "celery@test")
    yield shown
    reporter.end()


def all_of(seen: list[bytes]) -> list[Event]:
    reporter.flush()
    return [json.loads(document) for document in seen]


def lines_of(events: list[Event]) -> list[str]:
    return [line for event in events if event["type"] == "task-log" for line in event["lines"]]


def values_of(events: list[Event]) -> list[tuple[Any, Any, Any]]:
    return [(event["done"], event["total"], event["note"]) for event in events if event["type"] == "task-progress"]


# --- in a worker ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_ends_at_once_has_shown_its_last_words_before_its_outcome(watch, pool: str):
    watched = watch(pool)
    task_id = watched.send("tell")
    watched.ended(task_id)
    events = watched.events(task_id)  # looked at once
    assert lines_of(events) == ["first", "last"]
    assert values_of(events)[-1] == (2, 2, None)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert {event["hostname"] for event in events} == {"celery@w1"}


@pytest.mark.alone
@pytest.mark.parametrize("pool", POOLS)
def test_what_a_task_told_last_is_shown_although_it_says_no_more(watch, tmp_path: Path, pool: str):
    watched, go_on = watch(pool), tmp_path / "go on"
    task_id = watched.send("tell_and_wait", str(go_on))
    eventually(lambda: (100, 100, None) in values_of(watched.events(task_id)))
    events = eventually(lambda: len(lines_of(found := watched.events(task_id))) == 101 and found)
    assert watched.outcome(task_id) is None
    go_on.touch()
    assert lines_of(events) == ["first", *(f"line {number}" for number in range(1, 101))]
    assert len(events) <= 6
    assert events[-1]["timestamp"] - events[0]["timestamp"] < 4 * PACE
    watched.ended(task_id)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("name", "lines"), [("failed", ["told"]), ("ignored", ["told"]), ("afterwards", ["told", "afterwards"])]
)
def test_however_a_task_ends_all_it_told_is_shown(watch, pool: str, name: str, lines: list[str]):
    watched = watch(pool)
    task_id = watched.send(name)
    watched.ended(task_id)
    assert eventually(lambda: lines_of(watched.events(task_id)) == lines)


def test_tasks_of_one_process_are_told_apart(watch):
    watched = watch("threads")
    ids = {name: watched.send("mumble", name, 300) for name in ("one", "other")}
    for name, task_id in ids.items():
        watched.ended(task_id)
        events = watched.events(task_id)
        assert lines_of(events) == [f"{name} {number}" for number in range(300)]
        assert values_of(events)[-1] == (300, 300, name)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_parts_that_a_task_runs_on_the_spot_and_its_threads_tell_in_its_name(watch, tmp_path: Path, pool: str):
    watched, go_on = watch(pool), tmp_path / "go on"
    task_id = watched.send("whole", str(go_on))
    assert eventually(lambda: lines_of(watched.events(task_id)) == ["applied", "called", "thread"])
    go_on.touch()
    watched.ended(task_id)
    assert lines_of(watched.events(task_id)) == ["applied", "called", "thread", "whole"]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_thread_that_a_task_left_behind_tells_no_more(watch, tmp_path: Path, pool: str):
    watched, go_on, told = watch(pool), tmp_path / "go on", tmp_path / "told"
    task_id = watched.send("leave_a_thread", str(go_on), str(told))
    watched.ended(task_id)
    go_on.touch()
    eventually(told.exists)
    assert watched.events(task_id) == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_flood_is_shown_in_few_messages_and_all_of_it_is_accounted_for(watch, pool: str):
    watched = watch(pool)
    task_id = watched.send("flood", 1.5)
    told = watched.ended(task_id)["result"]
    events = watched.events(task_id)
    shown = lines_of(events)
    assert told > 10_000
    assert shown[-1].startswith(f"line {told} and so on")
    assert len(shown) + sum(event.get("dropped", 0) for event in events) == told
    assert values_of(events)[-1][0] == told
    seconds = events[-1]["timestamp"] - events[0]["timestamp"]
    assert len(events) < 2 * seconds / PACE + 8  # progress and lines, and those that may be shown at once in batches
    assert sum(map(len, shown)) < BURST + LAST_WORDS + (seconds + 1) * RATE


def test_a_soft_time_limit_may_strike_while_a_task_tells_something(watch):
    watched = watch("prefork")
    ids = [watched.send("interrupted") for _ in range(4)]
    for task_id in ids:
        assert watched.ended(task_id)["result"] == "in time"
        assert lines_of(watched.events(task_id))[-1] == "interrupted"


def test_a_task_may_be_cancelled_while_it_tells_something(watch):
    watched = watch("prefork")
    task_id = watched.send("endless")
    eventually(lambda: watched.events(task_id))
    watched.app.control.revoke(task_id, terminate=True)
    assert watched.ended(task_id)["state"] == "REVOKED"
    later = watched.send("tell")
    watched.ended(later)
    assert lines_of(watched.events(later)) == ["first", "last"]


# --- in this process ------------------------------------------------------------------------------------------------


def test_outside_a_worker_nothing_happens():
    progress(1, 2, "half")
    log("a line")


def test_after_the_end_nothing_is_shown(seen: list[bytes]):
    running = reporter.current.get()
    reporter.end()
    running_again = reporter.current.set(running)  # as a thread that the task left behind has it
    log("too late")
    assert all_of(seen) == []
    reporter.current.reset(running_again)


@pytest.mark.parametrize("done", ["1", None, True, 1j, [1], Decimal(1)], ids=repr)
def test_what_is_no_number_is_refused_with_its_type(done: object):
    with pytest.raises(TypeError, match=rf"done must be a number, not {type(done).__name__}"):
        progress(done)
    if done is not None:
        with pytest.raises(TypeError, match="total must be a number"):
            progress(1, done)


@pytest.mark.parametrize("done", [-1, float("nan"), float("inf"), float("-inf"), MOST + 1, Fraction(-1, 2), 1e300])
def test_a_number_that_counts_nothing_is_refused(done: float):
    with pytest.raises(ValueError, match=r"done must be a number from 0 to 2\*\*53"):
        progress(done)
    with pytest.raises(ValueError, match="total must be a number"):
        progress(1, done)


def test_a_note_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="note must be a text, not int"):
        progress(1, 2, 3)


@pytest.mark.parametrize("values", [(0, 0), (0.5, 1.0), (3, 2), (MOST, MOST), (Fraction(1, 2), Fraction(1)), (5, None)])
def test_numbers_arrive_as_they_are(seen: list[bytes], values: tuple[Any, Any]):
    progress(*values)
    assert values_of(all_of(seen)) == [(*values, None)]


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        ("copying é 日本", "copying é 日本"),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("nul \0 half \ud800", "nul \ufffd half \ufffd"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("x" * 1_000_000, "x" * (NOTE - 1) + "…"),
    ],
    ids=["text", "lines", "unshowable", "coloured", "long"],
)
def test_a_note_is_one_short_line(seen: list[bytes], note: str, shown: str):
    progress(1, 2, note)
    assert values_of(all_of(seen)) == [(1, 2, shown)]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("é 日本 \U0001f43a\t.", ["é 日本 \U0001f43a\t."]),
        ("", [""]),
        ("ended\n", ["ended"]),
        ("one\ntwo\r\n\nfour", ["one", "two", "", "four"]),
        ("10%\r20%\r\n30%\r", ["20%", "30%"]),
        ("nul \0, half \ud800, bell \x07, turned \u202e", ["nul \ufffd, half \ufffd, bell \ufffd, turned \ufffd"]),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\x1b7", ["red text\ufffd7"]),
        (b"bytes \xc3\xa9 \xff", ["bytes é \ufffd"]),
        (bytearray(b"bytes"), ["bytes"]),
        (5, ["5"]),
        (ValueError("as told"), ["as told"]),
        ({"a": 1}, ["{'a': 1}"]),
        ("x" * 1_000_000, ["x" * (LINE - 1) + "…"]),
        ("\U0001f43a" * LINE, ["\U0001f43a" * LINE]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_lines_are_split_clipped_and_cleaned(seen: list[bytes], told: object, shown: list[str]):
    log(told)
    assert lines_of(all_of(seen)) == shown


def test_many_lines_go_out_in_batches_and_the_newest_of_too_many(seen: list[bytes]):
    log("\n".join(f"{number:6} {'é' * 100}" for number in range(5_000)))
    events = all_of(seen)
    shown = lines_of(events)
    assert [int(line.split()[0]) for line in shown] == list(range(5_000 - len(shown), 5_000))
    assert [event["dropped"] for event in events] == [5_000 - len(shown), *([0] * (len(events) - 1))]
    assert len(events) > 1
    assert all(len(json.dumps(event["lines"], ensure_ascii=False).encode()) < 1.1 * BATCH for event in events)
    assert max(map(len, seen)) < 1 << 17


def test_the_worst_batch_is_no_larger_than_twice_its_size(seen: list[bytes]):
    for _ in range(100):
        log('"\\' * (LINE // 2))
    assert max(map(len, (all_of(seen), seen)[1])) < 2 * BATCH + 1_000


def test_the_last_words_of_a_run_that_printed_too_much_are_shown(seen: list[bytes]):
    for _ in range(3):
        log("\n".join(["x" * 1_000] * 500))
        reporter.current.get().flush()
    del seen[:]
    log("\n".join(f"last {number}" for number in range(100)))
    assert lines_of(all_of(seen)) == [f"last {number}" for number in range(100)]


def test_an_event_is_one_of_celerys(seen: list[bytes]):
    log("a line")
    event = all_of(seen)[0]
    assert event == {
        "type": "task-log", "uuid": "here", "hostname": "celery@test", "pid": os.getpid(), "number": 1,
        "lines": ["a line"], "dropped": 0, "timestamp": pytest.approx(time.time(), abs=30),
        "utcoffset": event["utcoffset"],
    }  # fmt: skip
    assert isinstance(event["utcoffset"], int)


def test_a_task_does_not_wait_for_a_parent_that_takes_nothing_and_holds_little_meanwhile():
    asked, let_go = threading.Event(), threading.Event()
    reporter.begin(lambda _: asked.set() or let_go.wait(30), "here", "celery@test")
    try:
        log("first")
        assert asked.wait(30)
        began = time.monotonic()
        for number in range(20_000):
            log(str(number) * 500)
            progress(number)
        assert time.monotonic() - began < 10
        running = reporter.current.get()
        assert sum(map(len, running._lines)) <= reporter.WAITING * LINE
    finally:
        let_go.set()
        reporter.end()


def test_a_parent_that_is_gone_ends_the_telling_and_not_the_task(caplog: pytest.LogCaptureFixture):
    def refuse(_: bytes) -> None:
        raise BrokenPipeError("gone")

    reporter.begin(refuse, "here", "celery@test")
    log("first")
    eventually(lambda: "Nothing more is shown of task here" in caplog.text)
    log("second")
    reporter.end()
    assert caplog.text.count("Nothing more is shown") == 1


class Struck(Exception):
    """Raised by a signal, like a soft time limit."""


@pytest.fixture
def strikes() -> Iterator[None]:
    """The main thread is interrupted again and again, between any two of its instructions."""

    def strike(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGPROF, strike)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def _tell_until_struck(number: int) -> int:
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.001)
        while True:
            number += 1
            log(f"line {number}")
            progress(number)
    except Struck:
        return number


def test_an_exception_at_any_moment_of_a_telling_blocks_nothing(strikes: None):
    number = 0
    for _ in range(300):
        shown: list[bytes] = []
        reporter.begin(shown.append, "here", "celery@test")
        number = _tell_until_struck(number) + 1
        progress(number, None, "last")
        reporter.end()
        assert values_of([json.loads(document) for document in shown])[-1] == (number, None, "last")


def printed(script: str) -> str:
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60,
                           check=True)  # fmt: skip
    return ended.stdout


def test_a_process_that_the_task_forks_shows_nothing_and_a_run_of_its_own_does():
    assert (
        printed("""
import os, time
from howl.worker.task import reporter as sight
from howl.worker.task.context import log

def show(document):
    os.write(1, document + b"\\n")

sight.begin(show, "outer", "celery@test")
log("one")
time.sleep(0.05)
if os.fork() == 0:
    log("not to be seen")
    sight.end()
    sight.begin(show, "inner", "celery@test")
    log("two")
    time.sleep(0.5)  # it is the thread that shows it
    os._exit(0)
os.wait()
log("three")
sight.end()
""").count('"lines"')
        == 3
    )


def test_what_authors_import_brings_no_application_and_nothing_of_the_server_along():
    script = "import sys, howl.worker.task.context; print(*sys.modules)"
    loaded = set(printed(script).split())
    assert "howl.worker.task.context" in loaded
    # A stock application of theirs stays the current one.
    unwanted = {"sqlalchemy", "howl.celery", "howl.connections.postgres", "howl.server", "mcp", "celery.worker"}
    assert not loaded & unwanted


def test_telling_costs_a_few_microseconds(seen: list[bytes]):
    began = time.process_time()
    for number in range(100_000):
        progress(number, 100_000, "counting")
        log("a line of a common length, such as programs print when they have done one of their many steps")
    assert time.process_time() - began < 1.0  # 10 us for both; 1 us on an idle machine of 2026
