"""Benchmark of distance: tasks per second of HOWL's worker at several distances, alternating within each round.

`python -m benchmarks.far` prints the medians of five rounds, and the ratio of each distance's rate to the near rate;
then the same while a neighbour takes one of the cores. Idle is the share of processor time that was not used meanwhile.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import Race
from howl.embedded.isolation import isolate
from howl.embedded.stack import Stack

#: The program of a neighbour: it keeps the first core busy, until this process ends.
BUSY = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile os.getppid() == %d: pass"


class Lap(NamedTuple):
    """A measurement: tasks per second, and the share of processor time that was idle."""

    rate: float
    idle: float


@click.command()
@click.option("--tasks", default=6000, show_default=True, help="Tasks a lap.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the distances alternate within each.")
@click.option("--concurrency", default=4, show_default=True, help="Children or threads of the worker.")
@click.option("--pool", default="prefork", show_default=True, type=click.Choice(["prefork", "threads"]), help="Pool.")
@click.option("--sleep", default=0.0, help="Milliseconds each task sleeps; 0: a task that does nothing.")
@click.option("--distance", multiple=True, type=float, default=(20.0, 50.0, 150.0), show_default=True,
              help="Milliseconds of a round trip; more than once for more than one.")  # fmt: skip
@click.option("--neighbour", default="both", show_default=True, type=click.Choice(["without", "with", "both"]),
              help="Whether somebody else takes one core.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    tasks: int, rounds: int, concurrency: int, pool: str, sleep: float, distance: tuple[float, ...], neighbour: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure far against near."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    setting: dict[str, object] = {"concurrency": concurrency, "workers": 1, "pool": pool}
    results: dict[bool, dict[float, list[Lap]]] = {}
    try:
        with Stack(home / "state") as stack:
            race = Race(stack, ("howl",), tasks, sleep / 1000, setting, quiet=True)
            for is_beside in {"without": (False,), "with": (True,), "both": (False, True)}[neighbour]:
                with _neighbour(is_beside):
                    results[is_beside] = _rounds(race, rounds, (0.0, *distance), is_beside=is_beside)
    finally:
        shutil.rmtree(home)
    _show(results, as_json=as_json)


def _rounds(race: Race, rounds: int, distances: tuple[float, ...], *, is_beside: bool) -> dict[float, list[Lap]]:
    laps: dict[float, list[Lap]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for distance in distances:
            ((rate,),) = race.run(1, distance).values()
            laps[distance].append(Lap(rate, race.idle))
            beside = " beside a neighbour" if is_beside else ""
            click.echo(f"round {number}, {distance:g} ms{beside}: {rate:,.0f} tasks/s, {race.idle:.0%} idle", err=True)
    return dict(laps)


@contextmanager
def _neighbour(is_there: bool) -> Iterator[None]:
    """Run a neighbour, which also ends with this process, however that ends."""
    if not is_there:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY % os.getpid()])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _show(results: dict[bool, dict[float, list[Lap]]], *, as_json: bool) -> None:
    if as_json:
        named = {"beside a neighbour" if beside else "alone": laps for beside, laps in results.items()}
        click.echo(json.dumps({"cores": os.cpu_count(), "laps": named}, indent=2))
        return
    table = Table("neighbour", "round trip", "tasks/s (median)", "rounds", "of near", "idle (median)")
    for beside, laps in results.items():
        near = statistics.median(lap.rate for lap in laps[0.0])
        for distance, at in laps.items():
            rate = statistics.median(lap.rate for lap in at)
            idle = statistics.median(lap.idle for lap in at)
            shown = ", ".join(f"{lap.rate:,.0f}" for lap in at)
            table.add_row("one core" if beside else "none", f"{distance:g} ms", f"{rate:,.0f}", shown,
                          f"{rate / near:.0%}", f"{idle:.0%}")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
