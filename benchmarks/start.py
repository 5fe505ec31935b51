"""Benchmark of a worker's start, near the server: from its process's start to its first claim, and to the task's end.

`python -m benchmarks.start`: the median of ten, after one that is not counted.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections.redis import redis_client
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack

ROOT = Path(__file__).parents[1]
#: Most seconds for a worker to claim or end its task, or to end; and seconds between two polls.
PATIENCE, POLL = 60.0, 0.002


@click.command()
@click.option("--runs", default=10, show_default=True, type=click.IntRange(min=1), help="Workers to start.")
@click.option("--pool", default="prefork", show_default=True, help="prefork, threads or solo.")
def main(runs: int, pool: str) -> None:
    """Start workers, one after the other, each with one task that waits for it."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-start-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack:
            settings = load_settings(redis_url=stack.urls.redis_url, nats_url=stack.urls.nats_url, home=stack.home)
            taken = [_once(settings, home, pool) for _ in range(runs + 1)][1:]
    finally:
        shutil.rmtree(home)
    for what, seconds in zip(("first claim", "first end"), zip(*taken, strict=True), strict=True):
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        click.echo(f"{what}: {median:.2f} s (median of {runs}; {least:.2f} to {most:.2f})")


def _once(settings: Settings, home: Path, pool: str) -> tuple[float, float]:
    """Return the seconds until the task was claimed, and until its outcome was reported."""
    client: Any = redis_client(settings)
    app = create_app(settings.model_copy(update={"task_modules": ("benchmarks.tasks",)}))
    outcomes = client.xlen(settings.key("outcomes"))
    app.send_task("bench.noop")
    began = time.monotonic()
    process = _worker(settings, home, pool)
    try:
        claimed = _when(lambda: client.llen(settings.key("celery")) == 0) - began
        return claimed, _when(lambda: client.xlen(settings.key("outcomes")) > outcomes) - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        client.close()
        app.close()


def _worker(settings: Settings, home: Path, pool: str) -> "subprocess.Popen[bytes]":
    env = clean_environment(
        HOWL_REDIS_URL=settings.redis(), HOWL_NATS_URL=settings.nats(), HOWL_HOME=str(settings.home),
        HOWL_TASK_MODULES="benchmarks.tasks", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    line = [Path(sys.executable).with_name("howl"), "worker", "--name", "starter", "--pool", pool]
    with (home / "worker.log").open("ab") as log:
        return subprocess.Popen(line, env=env, stdout=log, stderr=log, cwd=os.fspath(home))


def _when(look: Callable[[], bool]) -> float:
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise click.ClickException("The worker did not do its task in time: look at its log.")
        time.sleep(POLL)
    return time.monotonic()


if __name__ == "__main__":
    main()
