"""`howl burst`: start workers for a limited time."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from howl.burst import local, record
from howl.burst.local import BurstState, LocalBurst
from howl.burst.request import BurstRequest
from howl.cli import words
from howl.cli.options import DURATION, NAMES
from howl.cli.output import Column, emit
from howl.cli.person import person
from howl.config import Settings, load_settings
from howl.errors import BurstFailed

SUMMARY = (
    Column("worker_id", "worker"),
    Column("time", "ran for", words.length),
    Column("tasks", "tasks", words.counts),
)

#: Signals that ask for an orderly end: a terminal's Ctrl-C and its closing, and `kill`.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.group()
def burst() -> None:
    """Start workers for a limited time."""


@burst.command()
@click.option("--local", "on_this_machine", is_flag=True, help="Start them on this machine.")
@click.option("--workers", type=click.IntRange(1, local.MOST_WORKERS), default=2, show_default=True, metavar="N")
@click.option(
    "--runtime", type=DURATION, default="30m", show_default=True, metavar="TIME", help="Gone after this long."
)
@click.option(
    "--grace", type=DURATION, metavar="TIME",
    help="How long before that to take no more tasks; by default 90s, or a quarter of a short runtime.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once, each; by default one a core."
)
@click.option("--tags", type=NAMES, default=(), metavar="A,B", help="Words to know them by in `howl workers`.")
@click.option("--queues", type=NAMES, default=(), metavar="A,B", help="Queues to take tasks from.")
@click.option("--detach", is_flag=True, help="Return once they have registered; they end by themselves.")
@click.option("--burst-id", hidden=True)
def start(on_this_machine: bool, detach: bool, burst_id: str | None, **asked: Any) -> None:
    """Start a burst of workers, show what they do, and return when all are gone.

    Ctrl-C lets them end what they run (at most as long as the grace), then they go; a second one ends them at once.

    \b
    Examples:
        howl burst start --local --workers 2 --runtime 5m
        howl burst start --local --workers 4 --concurrency 1 --tags linux,big --detach
    """
    if not on_this_machine:
        raise click.UsageError("Bursts on GitHub are not available yet: add --local for workers on this machine.")
    if burst_id:
        asked["burst_id"] = burst_id
    request = BurstRequest(requested_by=person(), **asked)
    settings = load_settings()
    if detach:
        _start_detached(request, settings)
    else:
        _run(request, settings)


# --- in the foreground -------------------------------------------------------------------------------------------


def _run(request: BurstRequest, settings: Settings) -> None:
    with _interruptible():
        running = local.start(request, settings)
        click.echo(f"Burst {request.burst_id}; logs in {running.folder}", err=True)
        try:
            last = _follow(running, settings)
        except KeyboardInterrupt:
            last = None
            _drain(running)
    _summarise(running, settings)
    if last is not None and last.registered == 0:
        raise BurstFailed(
            f"No worker ever registered; {running.workers[0].log} ends with:\n{running.workers[0].log_tail()}"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Every wish for an orderly end is a KeyboardInterrupt, also in a script's background, where Ctrl-C is ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(running: LocalBurst, settings: Settings) -> BurstState:
    """Show the burst until its workers are gone: a line that moves on a terminal, else a line a change."""
    console = Console(stderr=True)
    shown = ""
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:
        for state in local.watch(running, settings):
            if live is not None:
                live.update(Text(_progress(state, running)), refresh=True)
            elif (progress := _counts(state, running)) != shown:
                click.echo(shown := progress, err=True)
    return state


def _counts(state: BurstState, running: LocalBurst) -> str:
    asked = running.request.workers
    gone = f", {asked - state.alive} gone" if state.alive < asked else ""
    return f"{state.registered} of {asked} workers registered{gone}; tasks done: {state.ended}"


def _progress(state: BurstState, running: LocalBurst) -> str:
    return f"{_counts(state, running)}; {words.length(state.seconds_left)} left (Ctrl-C ends it)"


def _drain(running: LocalBurst) -> None:
    patience = words.length(running.request.patience)
    click.echo(f"\nThe workers end what they run, for {patience} at most; Ctrl-C ends them now.", err=True)
    try:
        for _ in local.drain(running):
            pass
    except KeyboardInterrupt:
        local.kill(running)


def _summarise(running: LocalBurst, settings: Settings) -> None:
    tasks = local.finish(running, settings)
    rows = [
        {"worker_id": worker.name, "time": worker.seconds(), "tasks": tasks[worker.name]} for worker in running.workers
    ]
    emit(rows, False, columns=SUMMARY)


# --- in the background -------------------------------------------------------------------------------------------


def _start_detached(request: BurstRequest, settings: Settings) -> None:
    """Let another `howl burst start` stay with the workers; return when they have registered."""
    log = settings.home / "bursts" / f"{request.burst_id}.log"
    process = _start_again(request, log)
    try:
        _wait_until_registered(request, settings, process, log)
    except BaseException:
        process.terminate()
        raise
    click.echo(f"Burst {request.burst_id}: {', '.join(request.names)}")
    click.echo(f"They leave in {words.length(request.runtime)}; `kill {process.pid}` lets them go earlier.", err=True)


def _start_again(request: BurstRequest, log: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "howl.cli", "burst", "start", "--local", "--burst-id", request.burst_id]
    for name in ("workers", "runtime", "grace", "concurrency"):
        value = getattr(request, name)
        line += [] if value is None else [f"--{name}", f"{value:g}"]
    for name in ("tags", "queues"):
        names = getattr(request, name)
        line += [f"--{name}", ",".join(names)] if names else []
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch(mode=0o600, exist_ok=False)
        with log.open("wb") as output:
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        raise BurstFailed(f"The burst cannot be left running ({error}): choose another HOWL_HOME.") from error


def _wait_until_registered(
    request: BurstRequest, settings: Settings, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + local.REGISTER_TIMEOUT
    while record.count(settings.database(), request.names)[0] < request.workers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise BurstFailed(f"The workers did not register; {log} says why.")
        time.sleep(local.POLL)
