"""A burst on this machine in the foreground, shown until its workers are gone and ended by Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from howl.bursts import local
from howl.bursts.local import BurstState, LocalBurst
from howl.bursts.request import BurstRequest
from howl.cli.ui import formats
from howl.config import Settings
from howl.errors import BurstFailed

#: Signals that ask for an orderly end: Ctrl-C, a closed terminal, and `kill`.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(request: BurstRequest, settings: Settings) -> list[dict[str, Any]]:
    """Start a burst, stay until it ends, and return what each worker did; raises BurstFailed if none registered."""
    with _interruptible():
        running = local.start(request, settings)
        try:
            click.echo(f"Burst {request.burst_id}; logs in {running.folder}", err=True)
            last = _follow(running, settings)
        except KeyboardInterrupt:
            last = None
            _drain(running)
    tasks = local.finish(running, settings)
    if last is not None and last.registered == 0:
        raise BurstFailed(
            f"No worker ever registered; {running.workers[0].log} ends with:\n{running.workers[0].log_tail()}"
        )
    return [
        {"worker_id": worker.name, "time": worker.seconds(), "tasks": tasks[worker.name]} for worker in running.workers
    ]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn each of ENDINGS into KeyboardInterrupt, also in the background of a script, where Ctrl-C is ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(running: LocalBurst, settings: Settings) -> BurstState:
    """Show the burst until its workers are gone: one updated line on a terminal, else a line per change."""
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
    return f"{_counts(state, running)}; {formats.length(state.seconds_left)} left (Ctrl-C ends it)"


def _drain(running: LocalBurst) -> None:
    patience = formats.length(running.request.patience)
    click.echo(f"\nThe workers end what they run, for {patience} at most; Ctrl-C ends them now.", err=True)
    try:
        for _ in local.drain(running):
            pass
    except KeyboardInterrupt:
        local.kill(running)
