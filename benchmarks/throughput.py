"""Benchmark of tasks per second, HOWL beside stock Celery: alternating rounds, medians, durable results only.

Tasks wait on the queue before a worker starts; the clock runs from a tenth of them done to all of them done, so that
neither publishing nor starting counts. Distance is a proxy that delays both directions (benchmarks/proxy.py), between
workers and everything they talk to. `python -m benchmarks.throughput --help` shows the options.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import BESIDE_STOCK, CONTENDERS, COST_OF_EVENTS, COST_OF_TLS, Contender, Distance
from howl.embedded.isolation import isolate
from howl.embedded.stack import Stack

#: Seconds after which a wait for done tasks is given up.
LIMIT = 300.0
#: Seconds between two polls of what is done: polling takes processor time from the contenders.
LOOK = 0.1
#: Tasks of stock Celery at a distance, where it does only a few per second.
FAR_TASKS = 60


@click.command()
@click.option("--tasks", default=4000, show_default=True, help="Tasks a round.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; contenders alternate within each.")
@click.option("--concurrency", default=4, show_default=True, help="Children or threads of a worker.")
@click.option("--workers", default=1, show_default=True, help="Workers.")
@click.option("--pool", default="prefork", show_default=True, type=click.Choice(["prefork", "threads"]), help="Pool.")
@click.option("--sleep", default=0.0, help="Milliseconds each task sleeps; 0: a task that does nothing.")
@click.option(
    "--distance",
    multiple=True,
    type=float,
    default=(0.0, 50.0),
    show_default=True,
    help="Milliseconds of a round trip between workers and servers; more than once for more than one.",
)
@click.option("--tls", is_flag=True, help="Compare HOWL with TLS and without, as `howl init` sets servers up.")
@click.option("--events", is_flag=True, help="Compare HOWL with task events and without.")
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Compare these alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    tasks: int, rounds: int, concurrency: int, workers: int, pool: str, sleep: float, distance: tuple[float, ...],
    tls: bool, events: bool, only: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Measure tasks a second, near and far."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    setting = {"concurrency": concurrency, "workers": workers, "pool": pool}
    try:
        with Stack(home / "state") as stack:
            names = only or (COST_OF_TLS if tls else COST_OF_EVENTS if events else BESIDE_STOCK)
            race = Race(stack, names, tasks, sleep / 1000, setting, quiet=as_json)
            results = {far: race.run(rounds, far) for far in distance}
    finally:
        shutil.rmtree(home)
    _show(results, as_json=as_json)


class Race:
    """Contenders on one stack, each lap in a namespace of its own."""

    def __init__(
        self,
        stack: Stack,
        names: tuple[str, ...],
        tasks: int,
        seconds: float,
        setting: dict[str, object],
        *,
        quiet: bool,
    ) -> None:
        self.stack = stack
        self.names = names
        self.tasks = tasks
        self.work: tuple[str, tuple[object, ...]] = ("bench.sleep", (seconds,)) if seconds else ("bench.noop", ())
        self.setting = setting
        self.quiet = quiet
        self.laps = 0
        #: The share of processor time that was idle while the last lap was measured.
        self.idle = 0.0

    def run(self, rounds: int, milliseconds: float) -> dict[str, list[float]]:
        """Run all laps, and return the tasks per second of each, by contender."""
        rates: dict[str, list[float]] = {CONTENDERS[name].name: [] for name in self.names}
        distance = Distance(milliseconds)
        try:
            for lap in range(1, rounds + 1):
                for name in self.names:
                    self.laps += 1
                    contender = CONTENDERS[name](self.stack, self.laps, distance)
                    rate = self.measure(
                        contender, FAR_TASKS if milliseconds and name.startswith("stock") else self.tasks
                    )
                    rates[contender.name].append(rate)
                    if not self.quiet:
                        line = f"{milliseconds:g} ms, round {lap}: {contender.name:24} {rate:8,.0f} tasks/s"
                        click.echo(line, err=True)
        finally:
            distance.close()
        return rates

    def measure(self, contender: Contender, tasks: int) -> float:
        """Return the tasks per second between a tenth of the tasks being done and all of them."""
        with ExitStack() as lap:
            lap.enter_context(contender.servers())
            contender.publish(*self.work, tasks)
            lap.enter_context(contender.working(**self.setting))  # type: ignore[arg-type]  # as the options say
            began, first = _when_done(contender, tasks // 10)
            idle, spent = _processors()
            ended, last = _when_done(contender, tasks)
            idle_then, spent_then = _processors()
        self.idle = (idle_then - idle) / max(spent_then - spent, 1)
        return (last - first) / (ended - began)


def _processors() -> tuple[int, int]:
    """Return the time that all processors have spent idle, and in all, in the kernel's units (proc(5), /proc/stat)."""
    spent = [int(number) for number in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return spent[3], sum(spent)


def _when_done(contender: Contender, count: int) -> tuple[float, int]:
    """Wait until at least `count` tasks are done, and return the time and their number."""
    deadline = time.monotonic() + LIMIT
    while (seen := contender.done()) < count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{contender.name}: only {seen} of {count} tasks done after {LIMIT:g} s.")
        contender.check()
        time.sleep(LOOK)
    return time.monotonic(), seen


def _show(results: dict[float, dict[str, list[float]]], *, as_json: bool) -> None:
    medians = {far: {name: statistics.median(laps) for name, laps in rates.items()} for far, rates in results.items()}
    if as_json:
        click.echo(json.dumps({"cores": os.cpu_count(), "rates": results, "medians": medians}, indent=2))
        return
    first, *_ = next(iter(results.values()))
    table = Table("round trip", "contender", "tasks/s (median)", "rounds", f"{first} is")
    for far, rates in results.items():
        for name, laps in rates.items():
            shown = ", ".join(f"{value:,.0f}" for value in laps)
            ratio = f"{medians[far][first] / medians[far][name]:.2f} times"
            table.add_row(f"{far:g} ms", name, f"{medians[far][name]:,.0f}", shown, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
