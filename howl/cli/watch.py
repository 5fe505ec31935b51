"""`howl watch`: show the overview live in the terminal."""

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from howl.cli.ui.dashboard import drawn
from howl.cli.ui.long_commands import undoing_when_told_to_stop
from howl.cli.ui.options import DURATION
from howl.cli.ui.output import plain, stdout_console
from howl.cli.ui.task_progress import can_move
from howl.config import Settings, load_settings
from howl.connections.postgres import session
from howl.errors import DatabaseUnavailable, QueueUnavailable
from howl.queries import overview
from howl.queries.live_state import Gauge
from howl.run_progress import progress

#: Seconds between two polls: the minimum, and the pause after PostgreSQL did not answer.
SHORTEST, PATIENCE = 0.2, 2.0
#: Columns of output if neither a terminal nor COLUMNS says how wide lines may be.
WIDTH = 120
#: Most running tasks whose progress is read.
BARS = 100


@click.command()
@click.option("--interval", type=DURATION, default="0.5s", show_default=True, metavar="TIME", help="Between two looks.")
@click.option("--once", is_flag=True, help="Look once, print it, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as a line of JSON, for programs.")
def watch(interval: float, once: bool, as_json: bool) -> None:
    """Watch the whole house live: workers, tasks, queues.

    It shows who is there and until when, running tasks with their progress, what just ended, what waits, and how many
    tasks end a second. Ctrl-C ends it, and nothing else. Where standard output is no terminal it prints one look and
    ends, with --json a line each interval. Lists are cut to what fits the terminal, and say so; in JSON each has 200
    rows at most (`workers_total` and `running_total` count all), and `queues` is null while Redis does not answer.

    \b
    Examples:
        howl watch
        howl watch --once
        howl watch --json --interval 5s | jq .ended_per_second
    """
    console = stdout_console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=WIDTH)
    with suppress(KeyboardInterrupt), undoing_when_told_to_stop(), Gauge(load_settings()) as gauge:
        if as_json:
            for seen in _looks(gauge, interval, once=once):
                sys.stdout.write(f"{json.dumps(seen, default=plain)}\n")
                sys.stdout.flush()
        elif once or not can_move(console):
            console.print(drawn(_look(gauge), console, rows=None))
        else:
            _show(gauge, interval, console)


def _show(gauge: Gauge, interval: float, console: Console) -> None:
    """Show the overview on the terminal's alternate screen, so that the previous content comes back afterwards."""
    seen = _look(gauge)
    with Live(console=console, screen=True, auto_refresh=False) as shown:
        while True:
            began = time.monotonic()
            shown.update(drawn(seen, console, rows=console.height), refresh=True)
            time.sleep(max(SHORTEST, interval) - min(SHORTEST, time.monotonic() - began))
            try:
                seen = _look(gauge)
            except DatabaseUnavailable as error:
                seen = seen | {"trouble": error.message}
                time.sleep(PATIENCE * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret


def _looks(gauge: Gauge, interval: float, *, once: bool) -> Iterator[dict[str, Any]]:
    while True:
        began = time.monotonic()
        yield _look(gauge)
        if once:
            return
        time.sleep(max(SHORTEST, interval - (time.monotonic() - began)))


def _look(gauge: Gauge) -> dict[str, Any]:
    """Return the overview with `queues` (waiting messages by name) and the `progress` of running tasks."""
    settings: Settings = gauge.settings
    with session(settings.database()) as opened:
        seen = overview.house(opened)
    try:
        queues, progress = gauge.read([task["task_id"] for task in seen["running"][:BARS]])
    except QueueUnavailable as error:
        return seen | {"queues": None, "trouble": error.message}
    running = [task | {"progress": _of(progress.get(task["task_id"]))} for task in seen["running"]]
    return seen | {"running": running, "queues": queues, "trouble": None}


def _of(told: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if told is None else progress(told)
