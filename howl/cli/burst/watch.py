"""`howl burst watch`, and the progress that `howl burst start` shows while workers register."""

from contextlib import nullcontext
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from howl.bursts.watch import TIMEOUT, Arrivals
from howl.bursts.watch import watch as looks
from howl.cli.ui.options import DURATION, as_json
from howl.cli.ui.output import emit
from howl.config import Settings, load_settings


@click.command()
@click.argument("burst_id", metavar="ID")
@click.option("--timeout", type=DURATION, default="15m", show_default=True, metavar="TIME", help="Wait no longer.")
@as_json
def watch(burst_id: str, timeout: float, as_json: bool) -> None:
    """Wait until a burst's workers have registered.

    It shows how many have, and fails when the run ends before. The first characters of an id will do, six or more.

    \b
    Examples:
        howl burst watch 1f0c9a
        howl burst watch 1f0c9a --timeout 5m --json
    """
    arrivals = show_until_registered(burst_id, load_settings(), timeout)
    if as_json:
        emit(asdict(arrivals), as_json)
    else:
        click.echo(_line(arrivals))


def show_until_registered(burst_id: str, settings: Settings, timeout: float = TIMEOUT) -> Arrivals:
    """Show a bar on standard error if it is a terminal, else a line per change; raises as howl.bursts.watch does."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = ""
    with Progress(*columns, console=console) if console.is_terminal else nullcontext() as bar:
        task = bar.add_task("workers registered", total=None) if bar else None
        for arrivals in looks(burst_id, settings, timeout):
            if bar is not None and task is not None:
                waits = f" (run {arrivals.run_status})" if arrivals.run_status else ""
                bar.update(
                    task,
                    description=f"workers registered{waits}",
                    completed=arrivals.registered,
                    total=arrivals.workers,
                )
            elif (line := _line(arrivals)) != shown:
                click.echo(shown := line, err=True)
    return arrivals


def _line(arrivals: Arrivals) -> str:
    return f"{arrivals.registered} of {arrivals.workers} workers registered"
