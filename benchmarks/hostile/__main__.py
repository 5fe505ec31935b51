"""The program that attacks real servers with one worker's credential and measures its neighbour: see `--help`."""

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.hostile.attacks import ATTACKS, CONTROL, find
from benchmarks.hostile.ground import Ground, Servers
from benchmarks.hostile.measure import LATEST, LEAST_RATIO, MOST_MEMORY, Row, measure
from howl.embedded.isolation import isolate

TOGETHER, CONTROL_TOGETHER = "all-together", f"{CONTROL}-together"
NAMES = [CONTROL, *ATTACKS, CONTROL_TOGETHER, TOGETHER]
#: Rows without an attack: the baseline for the others.
CONTROLS = (CONTROL, CONTROL_TOGETHER)
COLUMNS = ("without", "with", "ratio", "p99 s", "worst s", "server MiB", "NATS MiB", "Redis MiB", "Redis silent s",
           "PostgreSQL +MiB", "passes", "refused", "cut", "cpu s")  # fmt: skip
LEGEND = """\
without, with: the neighbour's tasks a second; p99, worst: from the end of a task of his to its row; server: `howl \
server`; Redis silent: longest time without an answer to anybody; PostgreSQL: growth while attacked; passes, refused, \
cut: what came of the attack's own commands (cut: not answered, busy or full); cpu: the attackers' own.
"""
#: Most seconds of a quiet span.
QUIET = 10.0
#: Seconds that a row takes in addition to its spans.
AROUND = 14


def _explained() -> str:
    lines = (f"    {name:24}{' '.join((find(name).__doc__ or '').split())}" for name in (CONTROL, *ATTACKS))
    return "\n".join(lines)


@click.command(epilog="\b\nThe attacks, each in a process of its own:\n" + _explained())
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(1, 600), help="Seconds of each attack."
)
@click.option(
    "--rounds", default=1, show_default=True, type=click.IntRange(1, 20), help="Quiet and attacked spans of each."
)
@click.option("--only", multiple=True, type=click.Choice(NAMES), metavar="NAME", help="These rows alone.")
@click.option(
    "--rate", default=100.0, show_default=True, help="The neighbour's tasks a second; 0: his queue is never empty."
)
@click.option("--concurrency", default=2, show_default=True, type=click.IntRange(1, 16), help="His worker's processes.")
@click.option("--keep", is_flag=True, help="Keep the folder with all logs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    seconds: float, rounds: int, only: tuple[str, ...], rate: float, concurrency: int, keep: bool, as_json: bool
) -> None:
    """See what one stolen worker credential does to a neighbour.

    Redis 7 with TLS, nats-server and PostgreSQL are started as `howl init` sets them up, with `howl server` and a
    worker (credential `victim`, queue `theirs`) that does short tasks at a steady rate. Attackers hold the credential
    `thief` (queue `mine`). Each row begins with empty servers; the neighbour is measured without the attack, and with.

    It ends with exit status 1 when a figure is missed: more than 70% of the neighbour's throughput left, his outcomes
    recorded within 5 s, `howl server` and NATS below 256 MiB each, Redis within its limits (maxmemory, and
    maxmemory-clients beside it).

    \b
    Examples:
        python -m benchmarks.hostile --seconds 5                    all rows in about ten minutes
        python -m benchmarks.hostile --only turn-given --seconds 10
        python -m benchmarks.hostile --only all-together            the figure of a minute
        python -m benchmarks.hostile --rate 0                       the neighbour has more to do than he can
    """
    isolate()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    home = Path(tempfile.mkdtemp(prefix="howl-hostile-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    chosen = [name for name in NAMES if name in only] if only else NAMES
    quiet = min(seconds, QUIET)
    minutes = len(chosen) * (rounds * (seconds + quiet) + AROUND) / 60
    click.echo(f"{len(chosen)} rows, about {minutes:.0f} min.", err=True)
    try:
        with Servers(home) as servers:
            new_ground = partial(Ground, servers, rate, concurrency)
            rows = [_try(name, new_ground, seconds, rounds, quiet) for name in chosen]
    finally:
        if keep:
            click.echo(f"All logs are in {home}.", err=True)
        else:
            shutil.rmtree(home, ignore_errors=True)
    _show(rows, as_json=as_json)
    sys.exit(any(row.missed for row in rows if row.name not in CONTROLS) or any(row.failure for row in rows))


def _try(name: str, new_ground: partial[Ground], seconds: float, rounds: int, quiet: float) -> Row:
    began = time.monotonic()
    click.echo(f"{name} ...", err=True)
    several = {TOGETHER: list(ATTACKS), CONTROL_TOGETHER: [CONTROL] * len(ATTACKS)}
    row = measure(name, several.get(name, [name]), new_ground, seconds, rounds, quiet)
    if name in CONTROLS and not row.passes:
        row.failure = row.failure or "no ordinary turn went through: is benchmarks.hostile.thief as new as turn.lua?"
        row.notes.append(row.failure)
    cells = ", ".join(f"{column} {cell}" for column, cell in zip(COLUMNS, _cells(row), strict=True))
    click.echo(f"{name}: {_verdict(row)} [{cells}] ({time.monotonic() - began:.0f} s)", err=True)
    return row


def _verdict(row: Row) -> str:
    words = ", ".join(row.missed)
    if row.name in CONTROLS:
        return f"control ({words})" if words else "control"
    return ("refused, " if row.is_refused else "") + (f"missed: {words}" if words else "kept")


def _show(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        judged = ((row, {"ratio": row.ratio, "missed": row.missed, "refused": row.is_refused}) for row in rows)
        said = [asdict(row) | more for row, more in judged]
        click.echo(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg(), "rows": said}, indent=2))
        return
    table = Table()
    for column in ("attack", *COLUMNS, "figures"):
        table.add_column(column, no_wrap=column == "attack")
    for row in rows:
        table.add_row(row.name, *_cells(row), _verdict(row))
    Console(width=200).print(table)
    for row in rows:
        for note in dict.fromkeys(row.notes):
            click.echo(f"{row.name}: {note} ({row.notes.count(note)} times)")
    click.echo(_reading(rows))


def _cells(row: Row) -> list[str]:
    tallies = [tally for tallies in row.tallies for tally in tallies.values()]
    seconds = ["-" if value is None else f"{value:.2f}" for value in (row.p99, row.worst)]
    late = f" ({row.unrecorded} still wait)" if row.unrecorded else ""
    return [
        *(f"{statistics.median(spans or [0]):.0f}" for spans in (row.without, row.during)), f"{row.ratio:.0%}",
        seconds[0], seconds[1] + late,
        *(f"{size >> 20}" for size in (row.server_memory, row.nats_memory)),
        f"{row.redis_memory >> 20} of {row.redis_limit >> 20}", f"{row.redis_silent:g}", f"{row.database_growth >> 20}",
        *(f"{sum(counts):,}" for counts in (
            [tally.passes for tally in tallies], [tally.refused for tally in tallies],
            [tally.cut + tally.busy for tally in tallies])),
        f"{sum(tally.processor for tally in tallies):.1f}",
    ]  # fmt: skip


def _reading(rows: list[Row]) -> str:
    """Return the notes that explain the figures."""
    controls = [f"{row.name} {row.ratio:.0%}" for row in rows if row.name in CONTROLS]
    held = "; ".join(controls) or f"not measured here (--only {CONTROL})"
    return LEGEND + (
        f"Figures: ratio above {LEAST_RATIO:.0%}, worst at most {LATEST:g} s, howl server and NATS below "
        f"{MOST_MEMORY >> 20} MiB, Redis within its limits (maxmemory, and maxmemory-clients beside it).\n"
        f"Attackers and servers share {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}): how much of a ratio is "
        f"due to that, the control says, which makes ordinary turns on its own queue as fast as they go: {held}."
    )


if __name__ == "__main__":
    main()
