"""Benchmark of the bridge: the cost of workers' events and the delay until they are recorded, over a real NATS.

Simulated workers send what real ones would: many events per message, and a heartbeat every ten seconds. Every event
that is kept carries the time at which it was published; PostgreSQL knows when its row was committed
(track_commit_timestamp). By default a client listens on Celery's event exchange, so that events are passed on as well.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from sqlalchemy import text

from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.connections.redis import redis_client
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack
from howl.server import migrate

ROOT = Path(__file__).parents[1]
#: Seconds of load before the clock starts; between heartbeats; and, at most, for the bridge to start or to catch up.
WARM_UP, HEARTBEAT, PATIENCE = 3.0, 10.0, 60.0

LATENCY = """
SELECT count(*), percentile_disc(0.5) WITHIN GROUP (ORDER BY late), percentile_disc(0.99) WITHIN GROUP (ORDER BY late),
       max(late)
FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float - (
          CASE kind WHEN 'received' THEN data ->> 'name' WHEN 'log' THEN data #>> '{lines,0}' ELSE data ->> 'note' END
      )::float AS late
      FROM task_events WHERE at > to_timestamp(:since)) AS kept
"""


@click.command()
@click.option("--workers", default=500, show_default=True, help="Workers.")
@click.option("--rate", default=20.0, show_default=True, help="Task events a second of each.")
@click.option("--interval", default=0.5, show_default=True, help="Seconds between two messages of a worker.")
@click.option("--seconds", default=30.0, show_default=True, help="Seconds of it.")
@click.option("--listen/--no-listen", default=True, show_default=True, help="Have somebody at Celery's event exchange.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(workers: int, rate: float, interval: float, seconds: float, listen: bool, as_json: bool) -> None:
    """Measure the bridge's share of a core, and the time from an event's publishing to its row's commit."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack:
            settings = _prepared(stack)
            with _bridge(settings, home) as bridge, _listener(settings, listen) as heard:
                found = asyncio.run(_measure(settings, bridge.pid, workers, rate, interval, seconds))
        found["passed on, messages"] = heard[0]
    finally:
        shutil.rmtree(home)
    click.echo(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def _prepared(stack: Stack) -> Settings:
    urls = stack.urls
    settings = load_settings(
        redis_url=urls.redis_url, nats_url=urls.nats_url, database_url=urls.database_url, home=stack.home
    )
    with stack.postgres._connect_as_superuser() as connection:  # noqa: SLF001  # no setting of a person's
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    stack.postgres.stop()
    stack.postgres.start()
    migrate.upgrade(settings.database())
    return settings


@contextmanager
def _bridge(settings: Settings, home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    names = ("redis_url", "nats_url", "database_url", "home")
    env = clean_environment(**{f"HOWL_{name.upper()}": str(getattr(settings, name)) for name in names})
    with (home / "bridge.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.only_bridge"],
            env=env | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextmanager
def _listener(settings: Settings, listen: bool) -> Iterator[list[int]]:
    """Subscribe as kombu does, drop every message, and provide their number."""
    heard, stop = [0], threading.Event()

    def hear(client: Any) -> None:
        subscription = client.pubsub()
        subscription.psubscribe(settings.key("/0.celeryev/*"))
        while not stop.is_set():
            heard[0] += subscription.get_message(ignore_subscribe_messages=True, timeout=0.1) is not None
        subscription.close()

    thread = threading.Thread(target=hear, args=[redis_client(settings)])
    if listen:
        thread.start()
    try:
        yield heard
    finally:
        stop.set()
        if listen:
            thread.join(PATIENCE)


async def _measure(
    settings: Settings, pid: int, workers: int, rate: float, interval: float, seconds: float
) -> dict[str, Any]:
    client = await nats.connect(settings.nats())
    try:
        stream = client.jetstream()
        await _until(lambda: _backlog(stream, settings), 0)
        crew = Crew(client, settings.subject_prefix, workers, rate, interval)
        await crew.work(WARM_UP)
        began, cpu = time.time(), _cpu(pid)
        published = await crew.work(seconds)
        cpu, took, backlog = _cpu(pid) - cpu, time.time() - began, await _backlog(stream, settings)
        ended = time.time()
        await _until(lambda: _backlog(stream, settings), 0)
        caught_up = time.time() - ended
    finally:
        await client.close()
    with postgres.session(settings.database()) as session:
        rows, median, most, longest = session.execute(text(LATENCY), {"since": began}).one()
    return {
        "events a second": round(published / took),
        "bridge, share of a core": round(cpu / took, 3),
        "rows": rows,
        "published to committed, median s": round(median, 3),
        "published to committed, p99 s": round(most, 3),
        "published to committed, longest s": round(longest, 3),
        "messages unread at the end": backlog,
        "seconds until they were read": round(caught_up, 2),
        "load average": os.getloadavg()[0],
    }


class Crew:
    """Simulated workers that publish one after the other, spread evenly over the interval."""

    def __init__(self, client: Client, prefix: str, workers: int, rate: float, interval: float) -> None:
        self.client, self.prefix, self.interval = client, prefix, interval
        self.names = [f"bench-{number}" for number in range(workers)]
        self.of_a_message = rate * interval
        self.told: dict[str, float] = dict.fromkeys(self.names, 0.0)
        self.next_heartbeat = {name: time.time() + HEARTBEAT * at / workers for at, name in enumerate(self.names)}

    async def work(self, seconds: float) -> int:
        """Publish for `seconds`, and return the number of task events."""
        published, messages = 0, 0
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            due = int(elapsed / self.interval * len(self.names))
            for number in range(messages, due):
                published += await self._speak(self.names[number % len(self.names)])
            messages = due
            await asyncio.sleep(0.005)
        await self.client.flush()
        return published

    async def _speak(self, name: str) -> int:
        now = time.time()
        if now >= self.next_heartbeat[name]:
            self.next_heartbeat[name] = now + HEARTBEAT
            await self._publish([_heartbeat(name, now)], now)
        first, self.told[name] = int(self.told[name]), self.told[name] + self.of_a_message
        events = [_event(name, number, now) for number in range(first, int(self.told[name]))]
        await self._publish(events, now)
        return len(events)

    async def _publish(self, events: list[dict[str, Any]], now: float) -> None:
        subject = f"{self.prefix}.events.crew"
        await self.client.publish(subject, json.dumps(events).encode(), headers={"Howl-Sent": repr(now)})


def _event(name: str, number: int, now: float) -> dict[str, Any]:
    """Build the next of the five events of a task; those that are kept carry the time of publishing."""
    task, step = divmod(number, 5)
    own: dict[str, Any] = (
        {"type": "task-received", "name": repr(now), "args": "(17, 'some text')", "kwargs": "{'limit': 1000}",
         "retries": 0, "eta": None, "expires": None, "root_id": f"{name}-{task:032}", "parent_id": None},
        {"type": "task-started"},
        {"type": "task-progress", "done": 50, "total": 100, "note": repr(now), "number": 1},
        {"type": "task-log", "lines": [repr(now), "a line of what the task printed " * 2], "dropped": 0, "number": 2},
        {"type": "task-succeeded", "result": "{'status': 200}", "runtime": 0.123},
    )[step]  # fmt: skip
    hostname, uuid = f"celery@{name}", f"{name}-{task:032}"
    return own | {"uuid": uuid, "hostname": hostname, "timestamp": now, "utcoffset": 0, "pid": 1, "clock": number}


def _heartbeat(name: str, now: float) -> dict[str, Any]:
    return {
        "type": "worker-heartbeat", "hostname": f"celery@{name}", "timestamp": now, "utcoffset": 0, "pid": 1,
        "freq": HEARTBEAT, "active": 1, "processed": 100, "sw_ident": "howl", "sw_ver": "0", "sw_sys": "Linux",
        "worker": {"worker_id": name, "boot_id": "b", "status": "active", "queues": ["celery"], "concurrency": 4},
    }  # fmt: skip


async def _backlog(stream: JetStreamContext, settings: Settings) -> int | None:
    try:
        return (await stream.stream_info(f"{settings.subject_prefix}-events")).state.messages
    except NotFoundError:
        return None  # the bridge has not created it yet


async def _until(look: Any, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while await look() != wanted:
        if time.monotonic() > deadline:
            raise click.ClickException("The bridge did not get there in time: it is too slow, or has not begun.")
        await asyncio.sleep(0.05)


def _cpu(pid: int) -> float:
    """Return seconds of processor time (proc_pid_stat(5): utime and stime, after the name's parenthesis)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
