"""Tasks a second, HOWL beside stock Celery: alternating rounds in one run, medians, results durable before they count.

Tasks wait on the queue before a worker starts; the clock runs from a tenth of them done to all of them done, so that
neither publishing nor starting counts. `python -m benchmarks.throughput --help` shows the knobs.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import CONTENDERS, Contender
from howl.embedded.isolation import isolate
from howl.embedded.stack import Stack

#: Seconds after which a round is given up.
LIMIT = 300.0


@click.command()
@click.option("--tasks", default=2000, show_default=True, help="Tasks a round.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; contenders alternate within each.")
@click.option("--concurrency", default=4, show_default=True, help="Children of the worker (prefork).")
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Compare these alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(tasks: int, rounds: int, concurrency: int, only: tuple[str, ...], as_json: bool) -> None:
    """Measure no-op tasks a second, beside the server."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack:
            rates = _race(stack, only or tuple(CONTENDERS), tasks, rounds, concurrency, quiet=as_json)
    finally:
        shutil.rmtree(home)
    _show(rates, as_json=as_json)


def _race(
    stack: Stack, names: tuple[str, ...], tasks: int, rounds: int, concurrency: int, *, quiet: bool
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {CONTENDERS[name].name: [] for name in names}
    number = 0
    for lap in range(1, rounds + 1):
        for name in names:
            number += 1
            contender = CONTENDERS[name](stack, number)
            rate = measure(contender, tasks, concurrency)
            rates[contender.name].append(rate)
            if not quiet:
                click.echo(f"round {lap}: {contender.name:24} {rate:8,.0f} tasks/s", err=True)
    return rates


def measure(contender: Contender, tasks: int, concurrency: int) -> float:
    """Tasks a second between a tenth of the tasks being done and all of them."""
    contender.publish("bench.noop", (), tasks)
    with contender.working(concurrency):
        began, first = _when_done(contender, tasks // 10)
        ended, last = _when_done(contender, tasks)
    return (last - first) / (ended - began)


def _when_done(contender: Contender, count: int) -> tuple[float, int]:
    """When at least so many were seen done, and how many there were."""
    deadline = time.monotonic() + LIMIT
    while (seen := contender.done()) < count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{contender.name}: only {seen} of {count} tasks done after {LIMIT:g} s.")
        contender.check()
        time.sleep(0.02)
    return time.monotonic(), seen


def _show(rates: dict[str, list[float]], *, as_json: bool) -> None:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if as_json:
        click.echo(json.dumps({"cores": os.cpu_count(), "rates": rates, "medians": medians}, indent=2))
        return
    table = Table("contender", "tasks/s (median)", "rounds", "HOWL is")
    reference = next(iter(medians.values()))
    for name, median in medians.items():
        laps = ", ".join(f"{value:,.0f}" for value in rates[name])
        table.add_row(name, f"{median:,.0f}", laps, f"{reference / median:.1f} times")
    Console().print(table)


if __name__ == "__main__":
    main()
