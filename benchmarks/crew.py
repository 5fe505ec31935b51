"""Check that nothing grows while many workers do little: fifty, for an hour of heartbeats in 100 s, on one server.

`python -m benchmarks.crew`: heartbeats, leases and the silence after which a worker is lost are shortened by the factor
of compression; all else (polls, rounds of the server, expiries) keeps its pace. If anything but the record of tasks
grows, the exit status is 1.
"""

import asyncio
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import nats
import psycopg
from rich.console import Console
from rich.table import Table

from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.connections.redis import redis_client
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack
from howl.server import migrate
from howl.submission import TaskRequest, submit
from tests.helpers.support import Process, eventually

ROOT = Path(__file__).parents[1]
#: Workers that are started at once: a worker's start takes a second of processor time.
AT_ONCE = 4
#: Most seconds for those to register, and for all workers to leave; seconds between two samples.
PATIENCE, SAMPLE = 120.0, 2.0
#: A value has grown if it stays, in the last third of the time, above its maximum of the first third times the factor
#: plus so many megabytes or items: PostgreSQL's files grow by pages, which are then used again.
GROWTH, GRAIN = 1.05, 0.1
#: Values that are counted since the start, and so may grow.
COUNTED = ("NATS: events sent so far", "PostgreSQL: tasks recorded")
#: Redis's command for the number of items in a key, by type.
SIZES = {b"stream": "xlen", b"zset": "zcard", b"hash": "hlen", b"list": "llen", b"set": "scard"}

Sample = dict[str, float]


@click.command()
@click.option("--workers", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--compress", default=36.0, show_default=True, help="How many times faster time goes.")
@click.option("--minutes", default=60.0, show_default=True, help="Minutes to look at, before they are compressed.")
@click.option("--warm-up", default=12.0, show_default=True, help="Minutes before that, which nobody counts.")
@click.option("--rate", default=5.0, show_default=True, help="Tasks a second (a real one) that do nothing.")
@click.option("--pool", default="solo", show_default=True, type=click.Choice(["solo", "threads", "prefork"]))
def main(workers: int, compress: float, minutes: float, warm_up: float, rate: float, pool: str) -> None:
    """Start a crew, let its heartbeats go by, and compare the end with the start."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-crew-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack, Crew(stack, home, compress) as crew:
            crew.gather(workers, pool)
            crew.live(warm_up * 60 / compress, rate)
            samples = crew.live(minutes * 60 / compress, rate)
            crew.say(minutes, compress)
            left = crew.part()
    finally:
        shutil.rmtree(home)
    sys.exit(1 if _show(samples, left) else 0)


class Crew:
    """A server, its workers, and measurements of what they leave in Redis, NATS and PostgreSQL."""

    def __init__(self, stack: Stack, home: Path, compress: float) -> None:
        self.stack, self.home = stack, home
        self.settings = _compressed(stack, home, compress)
        self.redis: Any = redis_client(self.settings)
        self.app = create_app(self.settings)
        self.processes: list[Process] = []
        self.submitted = 0

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.end()
        self.redis.close()
        self.app.close()

    def gather(self, workers: int, pool: str) -> None:
        """Start the server, then all workers, a few at a time."""
        self.app.loader.import_default_modules()
        migrate.upgrade(self.settings.database())
        self.server = self._start("server", HOWL_DATABASE_URL=self.settings.database())
        eventually(lambda: "server is up" in self.server.output, PATIENCE)
        for first in range(1, workers + 1, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, workers + 1))
            for number in numbers:
                self._start("worker", "--name", f"crew-{number}", "--pool", pool, "--concurrency", "1")
            eventually(lambda count=numbers[-1]: self._registered() >= count, PATIENCE)
        click.echo(f"{workers} workers are there.", err=True)

    def live(self, seconds: float, rate: float) -> list[Sample]:
        """Submit tasks at `rate` per second for `seconds`, and return samples of that time."""
        samples, began = [], time.monotonic()
        due = self.submitted
        while (gone := time.monotonic() - began) < seconds:
            samples.append(self.sample())
            self._submit(due + int(gone * rate) - self.submitted)
            time.sleep(max(0.0, len(samples) * SAMPLE - (time.monotonic() - began)))
        return samples

    def part(self) -> Sample:
        """End all workers, one half by SIGTERM and the other by SIGKILL, and return a sample of what is left."""
        for number, process in enumerate(self.processes[1:]):
            process.signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        for process in self.processes[1:]:
            process.wait(PATIENCE)
        eventually(
            lambda: not self._registered() and not self.redis.keys(f"{self.settings.key_prefix}turns:*"), PATIENCE
        )
        return self.sample()

    def say(self, minutes: float, compress: float) -> None:
        """Print what happened, before the results."""
        settings, lost = self.settings, self.server.output.count(" is gone: ")
        click.echo(
            f"{minutes:g} minutes, {compress:g} times faster: a heartbeat each {settings.heartbeat_interval:.2f} s, "
            f"leases of {settings.lease:.2f} s ({lost} ran out), {self.submitted} tasks, {os.cpu_count()} cores."
        )

    def sample(self) -> Sample:
        """Measure everything once."""
        return {
            "Redis: dataset, MB": self.redis.info("memory")["used_memory_dataset"] / 1e6,
            "Redis: keys": self.redis.dbsize(),
            **{f"Redis: in {kind}": count for kind, count in self._by_kind().items()},
            **asyncio.run(_events(self.settings)),
            "NATS: resident, MB": _resident(self.stack.nats.pid),
            "NATS: connections and files": len([*Path(f"/proc/{self.stack.nats.pid}/fd").iterdir()]),
            "howl server: resident, MB": _resident(self.server.pid),
            **self._tables(),
        }

    def _by_kind(self) -> Counter[str]:
        """Count the items in keys by the keys' first part."""
        found: Counter[str] = Counter()
        for key in self.redis.scan_iter(count=1000):
            kind = key.decode(errors="replace").removeprefix(self.settings.key_prefix).split(":")[0]
            found[kind] += getattr(self.redis, SIZES.get(self.redis.type(key), "exists"))(key)
        return found

    def _tables(self) -> Sample:
        with psycopg.connect(self.settings.database()) as connection:
            rows, dead, size, ended = connection.execute(
                "SELECT (SELECT count(*) FROM workers), (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = "
                "'workers'), pg_total_relation_size('workers'), (SELECT count(*) FROM tasks WHERE rank = 3)"
            ).fetchone() or (0, 0, 0, 0)
        return {
            "PostgreSQL: rows of workers": rows,
            "PostgreSQL: dead rows of workers": dead,
            "PostgreSQL: workers, MB": size / 1e6,
            "PostgreSQL: tasks recorded": ended,
        }

    def _submit(self, count: int) -> None:
        with postgres.session(self.settings.database()) as session:
            for _ in range(count):
                submit(TaskRequest(name="bench.noop"), session, self.app)
        self.submitted += count

    def _registered(self) -> int:
        with psycopg.connect(self.settings.database()) as connection:
            row = connection.execute("SELECT count(*) FROM workers WHERE status = 'active'").fetchone()
        return int(row[0]) if row else 0

    def _start(self, *words: str, **told: str) -> Process:
        env = clean_environment(
            HOWL_REDIS_URL=self.settings.redis(), HOWL_NATS_URL=self.settings.nats(), HOWL_HOME=str(self.home),
            HOWL_HEARTBEAT_INTERVAL=str(self.settings.heartbeat_interval), HOWL_LEASE=str(self.settings.lease),
            HOWL_LOST_AFTER=str(self.settings.lost_after), HOWL_TASK_MODULES="benchmarks.tasks", PYTHONPATH=str(ROOT),
            **told,
        )  # fmt: skip
        argv = [str(Path(sys.executable).with_name("howl")), *words]
        self.processes.append(Process(argv, env, self.home / f"process-{len(self.processes)}.log"))
        return self.processes[-1]


def _compressed(stack: Stack, home: Path, compress: float) -> Settings:
    usual = Settings(_env_file=None)
    return load_settings(
        redis_url=stack.urls.redis_url,
        nats_url=stack.urls.nats_url,
        database_url=stack.urls.database_url,
        home=home,
        task_modules=("benchmarks.tasks",),
        heartbeat_interval=usual.heartbeat_interval / compress,
        lost_after=usual.lost_after / compress,
        lease=usual.lease / compress,
    )


async def _events(settings: Settings) -> Sample:
    client = await nats.connect(settings.nats(), connect_timeout=5)
    try:
        name = f"{settings.subject_prefix}-events"
        stream = await client.jetstream().stream_info(name)
        bridge = await client.jetstream().consumer_info(name, "bridge")
    finally:
        await client.close()
    return {
        "NATS: events kept": stream.state.messages,
        "NATS: events kept, MB": stream.state.bytes / 1e6,
        "NATS: events sent so far": stream.state.last_seq,
        "NATS: events unread": bridge.num_pending or 0,
    }


def _resident(pid: int) -> float:
    """Return the resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _show(samples: list[Sample], left: Sample) -> list[str]:
    """Print medians of the first, second and last third; return the names of values that grew, except counted ones."""
    table = Table("", "start", "middle", "end", "most", "when all left", "")
    grown = []
    for name in sorted({name for sample in samples for name in sample}, key=_order):
        values = [sample.get(name, 0.0) for sample in samples]
        first, _, last = thirds = _thirds(values)
        grows = min(last) > max(first) * GROWTH + GRAIN
        shown = (*map(statistics.median, thirds), max(values), left.get(name, 0.0))
        table.add_row(name, *(f"{value:,.2f}".removesuffix(".00") for value in shown), "grows" if grows else "")
        grown += [name] if grows and name not in COUNTED else []
    Console(width=120).print(table)
    click.echo(f"Grows: {', '.join(grown)}." if grown else "Nothing grows but what is counted since the start.")
    return grown


def _order(name: str) -> tuple[bool, str]:
    return name in COUNTED, name


def _thirds(values: list[float]) -> tuple[list[float], list[float], list[float]]:
    third = len(values) // 3
    return values[:third], values[third:-third], values[-third:]


if __name__ == "__main__":
    main()
