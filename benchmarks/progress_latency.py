"""Benchmark of progress latency: from a remote task's call to the line that `howl tasks watch` prints.

`python -m benchmarks.progress_latency`: a worker 50 ms from Redis and NATS; bridge, PostgreSQL and watcher are local.
"""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.contenders import Distance
from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack
from howl.server import migrate
from howl.submission import TaskRequest, submit

ROOT = Path(__file__).parents[1]
#: Seconds between two reports, longer than reports are coalesced; and most seconds for a process to end.
PAUSE, PATIENCE = 0.6, 60.0


@click.command()
@click.option("--distance", default=50.0, show_default=True, help="Milliseconds of a round trip to the worker.")
@click.option("--reports", default=60, show_default=True, type=click.IntRange(min=2), help="How often it reports.")
@click.option("--pool", default="prefork", show_default=True, help="prefork, threads or solo.")
def main(distance: float, reports: int, pool: str) -> None:
    """Watch one task, and compare what it wrote down of the time with when it was shown."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-sight-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack, ExitStack() as closing:
            settings = load_settings(**_urls(stack), home=stack.home, task_modules=("benchmarks.tasks",))
            migrate.upgrade(settings.database())
            far = Distance(distance)
            closing.callback(far.close)
            env = _environment(settings)
            worker = env | {"HOWL_REDIS_URL": far.of(settings.redis()), "HOWL_NATS_URL": far.of(settings.nats())}
            del worker["HOWL_DATABASE_URL"]
            closing.enter_context(_running(["server"], env, home))
            closing.enter_context(_running(["worker", "--name", "far", "--pool", pool], worker, home))
            late = sorted(_watched(settings, env, reports))
    finally:
        shutil.rmtree(home)
    at = {"median": statistics.median(late), "p95": late[int(0.95 * (len(late) - 1))], "most": late[-1]}
    shown = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in at.items())
    click.echo(f"{len(late)} of {reports} reports shown, {distance:g} ms away: {shown}")


def _watched(settings: Settings, env: dict[str, str], reports: int) -> Iterator[float]:
    """Yield the seconds from each report to its line."""
    app = create_app(settings)
    app.loader.import_default_modules()
    with postgres.session(settings.database()) as session:
        task_id = submit(TaskRequest(name="bench.report", args=[reports, PAUSE]), session, app)
    line = [_howl(), "tasks", "watch", task_id, "--json", "--timeout", f"{2 * reports * PAUSE + PATIENCE:g}s"]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as watcher:
        for word in watcher.stdout or ():
            now, said = time.time(), json.loads(word)
            if said["kind"] == "progress":
                yield now - float(said["data"]["note"])
    app.close()


def _urls(stack: Stack) -> dict[str, Any]:
    return {name: getattr(stack.urls, name) for name in ("redis_url", "nats_url", "database_url")}


def _environment(settings: Settings) -> dict[str, str]:
    return clean_environment(
        HOWL_REDIS_URL=settings.redis(), HOWL_NATS_URL=settings.nats(), HOWL_DATABASE_URL=settings.database(),
        HOWL_HOME=str(settings.home), HOWL_TASK_MODULES="benchmarks.tasks", PYTHONPATH=str(ROOT),
    )  # fmt: skip


@contextmanager
def _running(words: list[str], env: dict[str, str], home: Path) -> Iterator[None]:
    with (home / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen([_howl(), *words], env=env, stdout=log, stderr=log, cwd=home)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def _howl() -> str:
    return str(Path(sys.executable).with_name("howl"))


if __name__ == "__main__":
    main()
