"""The overview, rendered for a terminal of any size."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from howl.cli.ui import formats
from howl.cli.ui.output import COLOURS
from howl.cli.ui.task_progress import SHORT_ID, bar_line
from howl.queries import overview

Row = dict[str, Any]

#: Lines of a section in addition to its rows: an empty one, and its title.
FRAME = 2
#: Fewest rows that a section must have room for; below that, sections are dropped from the last on.
LEAST = 2


@dataclass(frozen=True)
class Cell:
    """A column: its title, how its cells are drawn, and the width of terminal below which it is left out."""

    title: str
    draw: Callable[[Row, datetime], RenderableType | str]
    width_needed: int = 0
    #: Whether it takes the room that the others leave.
    stretches: bool = False
    right: bool = False


@dataclass(frozen=True)
class Section:
    """A list with a title; `total` is its full length."""

    title: str
    columns: tuple[Cell, ...]
    rows: list[Row]
    total: int


def drawn(seen: Row, console: Console, rows: int | None) -> RenderableType:
    """Render the overview within `rows` lines; None means as many as it takes."""
    sections = [section for section in _sections(seen) if section.rows]
    head = _head(seen)
    lines = rows if rows is not None else sys.maxsize
    while sections and lines - len(head) < (FRAME + LEAST) * len(sections):
        sections.pop()
    wanted = [len(section.rows) + (section.total > len(section.rows)) for section in sections]
    parts: list[RenderableType] = [*head[:lines]]
    for section, given in zip(sections, shares(wanted, lines - len(head) - FRAME * len(sections)), strict=True):
        parts += [Text(""), _table(section, given, seen["at"], console.width)]
        if (more := section.total - _shown(section, given)) > 0:
            parts.append(Text(f"… and {more:,} more", style="dim"))
    return Group(*parts)


def shares(wanted: list[int], room: int) -> list[int]:
    """Divide `room` lines among sections, one at a time to those that want more."""
    given = [0] * len(wanted)
    while room > 0 and given != wanted:
        for index, most in enumerate(wanted):
            if given[index] < most and room > 0:
                given[index] += 1
                room -= 1
    return given


def _head(seen: Row) -> list[Text]:
    waiting = "?" if seen["queues"] is None else f"{sum(seen['queues'].values()):,}"
    facts = (
        f"{seen['workers_total']:,} workers",
        *_running(seen),
        f"{waiting} waiting",
        f"{seen['ended_per_second']:,.1f} tasks/s",
        f"{seen['at'].astimezone():%H:%M:%S}",
    )
    lines = [Text("HOWL   " + "   ".join(facts), style="bold", no_wrap=True, overflow="ellipsis")]
    if seen["trouble"]:
        lines.append(Text(seen["trouble"], style="red", no_wrap=True, overflow="ellipsis"))
    if not seen["workers"]:
        lines.append(Text("No workers are active: `howl worker` starts one, `howl burst start` several."))
    return lines


def _running(seen: Row) -> list[str]:
    """Describe how many tasks run of how many could, and how many are on workers that are gone."""
    gone, able = seen["running_on_gone"], seen["concurrency_total"]
    here = seen["running_total"] - gone
    # More than the reported concurrency: a worker was just told to run fewer at once, or does not report it.
    told = [f"{here:,} of {able:,} running" if here <= able else f"{here:,} running"]
    return [*told, f"{gone:,} on workers that are gone"] if gone else told


def _sections(seen: Row) -> list[Section]:
    queues = [{"queue": name, "waiting": number} for name, number in (seen["queues"] or {}).items() if number]
    return [
        Section("workers", WORKERS, seen["workers"], seen["workers_total"]),
        Section("running", RUNNING, seen["running"], seen["running_total"]),
        Section("ended", ENDED, seen["ended"], len(seen["ended"])),
        Section("queues", QUEUES, sorted(queues, key=lambda queue: -queue["waiting"]), len(queues)),
    ]


def _shown(section: Section, given: int) -> int:
    """Return how many rows are shown: a list that is cut needs its last line to say so."""
    return given if given >= section.total else given - 1


def _table(section: Section, given: int, now: datetime, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="bold dim")
    columns = [column for column in section.columns if width >= column.width_needed]
    for column in columns:
        justify: Any = "right" if column.right else "left"
        ratio = 1 if column.stretches else None
        table.add_column(column.title, no_wrap=True, overflow="ellipsis", ratio=ratio, justify=justify)
    for row in section.rows[: _shown(section, given)]:
        table.add_row(*(column.draw(row, now) for column in columns))
    return table


def _text(name: str) -> Callable[[Row, datetime], Text]:
    return lambda row, _: Text(formats.visible(str(row[name] or formats.NOTHING)).replace("\n", " "))


def _status(row: Row, _: datetime) -> Text:
    return Text(row["status"], style=COLOURS.get(row["status"], ""))


def _task(row: Row, _: datetime) -> Text:
    return Text(formats.visible(row["task_id"][:SHORT_ID]))


def _since(name: str) -> Callable[[Row, datetime], str]:
    return lambda row, now: formats.length(_whole(overview.age(row[name], now)))


def _leaves(row: Row, now: datetime) -> str:
    if row["deadline_at"] is None:
        return formats.NOTHING
    return f"in {formats.length(_whole(max(0.0, (row['deadline_at'] - now).total_seconds())))}"


def _progress(row: Row, _: datetime) -> RenderableType:
    return bar_line(row["progress"], bar=12) if row.get("progress") else ""


def _whole(seconds: float | None) -> float | None:
    return None if seconds is None else float(int(seconds))


def _runs(row: Row, _: datetime) -> str:
    return f"{row['running']} of {row['concurrency'] or '?'}"


WORKERS = (
    Cell("worker", _text("worker_id"), stretches=True),
    Cell("status", _status),
    Cell("runs", _runs, right=True),
    Cell("leaves", _leaves, width_needed=50, right=True),
    Cell("heard", _since("last_heartbeat_at"), width_needed=100, right=True),
    Cell("origin", _text("origin"), width_needed=70),
)
RUNNING = (
    Cell("running", _task, width_needed=50),
    Cell("task", _text("name")),
    Cell("on", _text("worker_id"), width_needed=100),
    Cell("for", _since("started_at"), right=True),
    Cell("progress", _progress, stretches=True),
)
ENDED = (
    Cell("ended", _task, width_needed=50),
    Cell("task", _text("name"), stretches=True),
    Cell("status", _status),
    Cell("took", lambda row, _: formats.length(row["runtime"]), right=True),
    Cell("on", _text("worker_id"), width_needed=100),
    Cell("error", _text("error_type"), width_needed=70),
)
QUEUES = (
    Cell("queue", _text("queue"), stretches=True),
    Cell("waiting", lambda row, _: f"{row['waiting']:,}", right=True),
)
