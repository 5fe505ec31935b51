"""Measurement of one row: the neighbour in quiet and attacked spans by turns, and the servers' memory meanwhile."""

import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

import click
import psycopg
import redis

from benchmarks.hostile.ground import Ground
from benchmarks.hostile.loops import LATE, Tally

#: The promised figures: lowest ratio of a neighbour's throughput under attack; most seconds until his outcomes are
#: recorded; bytes that `howl server` and NATS must each stay below.
LEAST_RATIO, LATEST, MOST_MEMORY = 0.7, 5.0, 256 << 20
#: Bytes above which a process is killed, to protect this machine; compose would kill it long before.
TOO_MUCH = 2 << 30
#: Seconds between two polls of memory.
LOOK = 0.25
#: Most seconds after an attack to wait for the records of tasks that ended during it, and for tasks to be recorded
#: normally again.
AFTERWARDS, RECOVERY = 8.0, 15.0
#: Errors of servers under attack that end the measurement of a row.
FAILURES = (AssertionError, click.ClickException, psycopg.Error, redis.RedisError, OSError)
#: Most seconds for the attackers' processes to start and to report, beyond their own time.
START = 60.0


@dataclass
class Row:
    """The figures of one attack, or of several at once."""

    name: str
    #: The neighbour's tasks per second, in each quiet and in each attacked span.
    without: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    #: Seconds from the end of a task to its row: the longest, and the p99; None if no task ended.
    worst: float | None = None
    p99: float | None = None
    #: Unrecorded ends in the neighbour's stream when the wait for their records was given up.
    unrecorded: int = 0
    #: Peak bytes of the processes, and the limit of Redis in bytes.
    server_memory: int = 0
    nats_memory: int = 0
    redis_memory: int = 0
    redis_limit: int = 0
    #: Bytes by which PostgreSQL grew in the attacked spans, and the seconds of these spans.
    database_growth: int = 0
    seconds: float = 0.0
    #: Longest time, in seconds, without an answer from Redis.
    redis_silent: float = 0.0
    tallies: list[dict[str, Tally]] = field(default_factory=list)
    #: Why the measurement did not reach its end; None if it did.
    failure: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The neighbour's throughput under attack, divided by that without."""
        quiet = statistics.median(self.without or [0.0])
        return statistics.median(self.during or [0.0]) / quiet if quiet else 0.0

    @property
    def passes(self) -> int:
        """The number of passes that went through."""
        return sum(tally.passes for tallies in self.tallies for tally in tallies.values())

    @property
    def is_refused(self) -> bool:
        """Whether no pass of it went through."""
        known = [tally for tallies in self.tallies for tally in tallies.values()]
        return bool(known) and all(tally.is_refused for tally in known)

    @property
    def missed(self) -> list[str]:
        """The names of the figures that were not kept."""
        late = self.worst is None or self.worst > LATEST or self.unrecorded > 0
        figures = {
            "throughput": self.ratio <= LEAST_RATIO,
            "recorded": late,
            "howl server": self.server_memory >= MOST_MEMORY,
            "NATS": self.nats_memory >= MOST_MEMORY,
            "Redis": not 0 < self.redis_memory <= self.redis_limit,
            "not measured": self.failure is not None,
            "an attack broke": any(not tallies or any(t.broken for t in tallies.values()) for tallies in self.tallies),
        }
        return [name for name, is_missed in figures.items() if is_missed]


class Watch(threading.Thread):
    """A thread that polls memory, and restarts processes that have ended."""

    def __init__(self, ground: Ground, row: Row) -> None:
        super().__init__(name="watch", daemon=True)
        self.ground, self.row = ground, row
        self._over = threading.Event()
        self._answered = time.monotonic()

    def run(self) -> None:
        while not self._over.wait(LOOK):
            row, attend = self.row, self.ground.attend
            row.server_memory = max(row.server_memory, attend("howl server", TOO_MUCH))
            row.nats_memory = max(row.nats_memory, attend("nats", TOO_MUCH))
            for name in ("redis", "worker", "load"):
                attend(name, TOO_MUCH)
            with suppress(redis.RedisError):
                used, row.redis_limit = self.ground.redis_memory()
                row.redis_memory = max(row.redis_memory, used)
                self._answered = time.monotonic()
            row.redis_silent = max(row.redis_silent, round(time.monotonic() - self._answered, 1))

    def stop(self) -> None:
        self._over.set()
        self.join(START)


@contextmanager
def watched(ground: Ground, row: Row) -> Iterator[None]:
    """Watch the ground until the block ends, and keep what was seen in the row."""
    watch = Watch(ground, row)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        row.notes += ground.notes
        ground.notes = []


def measure(
    name: str,
    attacks: list[str],
    new_ground: Callable[[], AbstractContextManager[Ground]],
    seconds: float,
    rounds: int,
    quiet: float,
) -> Row:
    """Alternate quiet and attacked spans, `rounds` of each; if tasks are not recorded after one, use a new ground."""
    row = Row(name)
    try:
        _measure(row, attacks, new_ground, seconds, rounds, quiet)
    except FAILURES as error:
        row.failure = (str(error).strip().splitlines() or [repr(error)])[0]
        row.notes.append(f"not measured to the end: {row.failure:.200}")
    return row


def _measure(
    row: Row,
    attacks: list[str],
    new_ground: Callable[[], AbstractContextManager[Ground]],
    seconds: float,
    left: int,
    quiet: float,
) -> None:
    while left:
        with new_ground() as ground, watched(ground, row):
            while left:
                left -= 1
                row.without.append(_quiet(ground, quiet))
                _attacked(ground, row, attacks, seconds)
                if left and not ground.is_well(RECOVERY):
                    ground.note(f"not well {RECOVERY:g} s after the attack: all servers begin anew")
                    break


def _quiet(ground: Ground, seconds: float) -> float:
    began = time.time()
    time.sleep(seconds)
    ended = time.time()
    _wait_for_records(ground, ended)
    return ground.ended(began, ended)[0] / (ended - began)


def _attacked(ground: Ground, row: Row, attacks: list[str], seconds: float) -> None:
    attackers = ground.attackers(seconds, attacks)
    try:
        size = ground.database_bytes()
        began = time.time()
        said, _ = attackers.communicate("go\n", timeout=seconds + LATE + START)
    except subprocess.TimeoutExpired:
        said = "{}"
        ground.note("attackers did not end in time")
    finally:
        _end(attackers)
    ended = time.time()  # an attacker's script may have blocked Redis beyond its time
    row.tallies.append({name: Tally(**tally) for name, tally in json.loads(said or "{}").items()})
    waiting, oldest = _wait_for_records(ground, ended)
    recorded, p99, worst = ground.ended(began, ended)
    row.during.append((recorded + waiting) / (ended - began))
    row.unrecorded = max(row.unrecorded, waiting)
    row.worst = max(filter(None, (row.worst, worst, oldest)), default=None)
    row.p99 = max(filter(None, (row.p99, p99)), default=None)
    row.seconds += ended - began
    with suppress(psycopg.Error):
        row.database_growth += max(0, ground.database_bytes() - size)


def _end(attackers: subprocess.Popen[str]) -> None:
    if attackers.poll() is None:
        os.killpg(attackers.pid, signal.SIGKILL)
        attackers.wait(START)


def _wait_for_records(ground: Ground, until: float) -> tuple[int, float | None]:
    """Wait up to AFTERWARDS for the records of earlier ends; return the number missing, and the oldest's wait.

    An end that a worker could not report to Redis is in no stream yet; but a worker reports in order, so a later end
    that is recorded shows that all earlier ones were reported.
    """
    deadline, oldest = time.monotonic() + AFTERWARDS, None
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, psycopg.Error):
            oldest = ground.oldest_unrecorded()
            if (oldest is None or oldest > until) and ground.ended(until, time.time())[0]:
                return 0, None
        time.sleep(0.2)
    waiting = 0
    with suppress(redis.RedisError):
        waiting = ground.unrecorded(until)
    return waiting, max(AFTERWARDS, time.time() - (oldest or until))
