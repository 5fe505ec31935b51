"""Display of running tasks: bars and lines on a terminal, plain lines elsewhere, JSON for programs."""

import json
import sys
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from howl.cli.ui import formats
from howl.cli.ui.follow import Followed, Look
from howl.cli.ui.output import COLOURS, plain
from howl.queries import overview
from howl.run_progress import in_words, log_lines

Row = dict[str, Any]

#: Characters of a task's id that are shown to tell it from others.
SHORT_ID = 8
#: Width of a bar, in columns.
BAR = 40
#: Seconds between two lines about one task's progress, where output cannot be replaced.
PROGRESS_PACE = 5.0


class Teller(AbstractContextManager[Any], Protocol):
    """A display that is given every poll and every finished task, whole; leaving its context closes what it opened."""

    def look(self, look: Look) -> None:
        """Show what has happened since the last poll."""

    def over(self, task: Row) -> None:
        """Show a task that is over, after all of its events."""


def teller(*, several: bool) -> Teller:
    """Return the display that suits standard error; with `several` tasks, each line names its task."""
    console = Console(stderr=True, highlight=False)
    return Screen(console, several=several) if can_move(console) else Lines(several=several)


def can_move(console: Console) -> bool:
    """Return whether printed output can be replaced."""
    return console.is_terminal and not console.is_dumb_terminal


class _Open:
    """A context that opens and closes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""


class Screen(_Open):
    """A display for terminals: the tasks' output scrolls by, above a block that shows the state of each task."""

    def __init__(self, console: Console, *, several: bool) -> None:
        self.console, self.several = console, several
        # Standard output is for results, even if it is a terminal too.
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def look(self, look: Look) -> None:
        for event in look.events:
            for line in _lines_of(event, several=self.several):
                self.console.print(Text(line), soft_wrap=True)
        room = max(1, self.console.height // 2 - 1)
        shown = [self._block(task) for task in look.going_on[:room]]
        more = len(look.going_on) - len(shown)
        self._live.update(Group(*shown, *([Text(f"… and {more} more")] if more else [])), refresh=True)

    def over(self, task: Row) -> None:
        self.console.print(Text(_end(task, several=self.several), style=COLOURS.get(task["status"], "")))

    def _block(self, task: Followed) -> RenderableType:
        head = Text(_mark(task.task_id, several=self.several), style="bold", no_wrap=True, overflow="ellipsis")
        head.append(_state(task.row), style=COLOURS.get(task.row["status"], ""))
        return Group(head, bar_line(task.progress)) if task.progress else head


class Lines(_Open):
    """A display in plain lines: one for every change, and the tasks' output as they wrote it."""

    def __init__(self, *, several: bool) -> None:
        self.several = several
        self._states: dict[str, str] = {}
        self._progress: dict[str, tuple[datetime, str]] = {}

    def look(self, look: Look) -> None:
        for task in look.going_on:
            if task.ended_at is None:
                self._tell_state(task)
        for event in look.events:
            for line in _lines_of(event, several=self.several):
                click.echo(line, err=True)
        for task in look.going_on:
            self._tell_progress(task)

    def over(self, task: Row) -> None:
        click.echo(_end(task, several=self.several), err=True)

    def _tell_state(self, task: Followed) -> None:
        state = f"{task.row['status']}{_where(task.row)}"
        if self._states.get(task.task_id) != state:
            self._states[task.task_id] = state
            click.echo(f"{_mark(task.task_id, several=self.several)}{formats.visible(state)}", err=True)

    def _tell_progress(self, task: Followed) -> None:
        told, now = in_words(task.progress or {}), datetime.now(UTC)
        before, said = self._progress.get(task.task_id, (None, ""))
        if told and told != said and (before is None or (now - before).total_seconds() >= PROGRESS_PACE):
            self._progress[task.task_id] = now, told
            click.echo(f"{_mark(task.task_id, several=self.several)}progress: {formats.visible(told)}", err=True)


class NdJson(_Open):
    """A display in JSON, one line for every event: `task_id`, `at`, `kind`, `worker_id`, `data`.

    Each task's first line has the kind `task` (its current row), its last the kind `result`, whose data is all that
    `howl tasks show --json` prints.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def look(self, look: Look) -> None:
        for task in look.tasks:
            if task.task_id not in self._known:
                self._known.add(task.task_id)
                self._say(task.row, "task", datetime.now(UTC), task.row)
        for event in look.events:
            self._say(event, event["kind"], event["at"], event["data"])

    def over(self, task: Row) -> None:
        self._say(task, "result", task["finished_at"], task)

    def _say(self, of: Row, kind: str, at: datetime | None, data: Any) -> None:
        line = {"task_id": of["task_id"], "at": at, "kind": kind, "worker_id": of["worker_id"], "data": data}
        sys.stdout.write(f"{json.dumps(line, default=plain)}\n")
        sys.stdout.flush()


# --- lines -------------------------------------------------------------------------------------------------------


def bar_line(progress: Row, bar: int = BAR) -> RenderableType:
    """Draw a bar if the total is known, then what is done and the task's own note."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    cells: list[RenderableType] = []
    done, total = progress["done"], progress["total"]
    if done is not None and total:
        grid.add_column(width=bar, max_width=bar)
        cells.append(ProgressBar(total=total, completed=min(done, total), width=None))
        if bar == BAR:
            grid.add_column(no_wrap=True, width=5, justify="right")
            cells.append(Text(formats.share(min(done, total) / total)))
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    cells.append(Text(formats.visible(in_words(progress).replace("\n", " "))))
    grid.add_row(*cells)
    return grid


def _lines_of(event: Row, *, several: bool) -> list[str]:
    mark = _mark(event["task_id"], several=several)
    return [f"{mark}{formats.visible(line)}" for line in log_lines([event])]


def _mark(task_id: str, *, several: bool) -> str:
    return formats.visible(f"{task_id[:SHORT_ID]}  ") if several else ""


def _state(row: Row) -> str:
    """Describe a task as `tests.report: started on w1, attempt 2, 12 s`."""
    moment = row["queued_at"] if row["status"] == "queued" else row["started_at"] or row["queued_at"]
    again = f", attempt {row['attempts']}" if row["attempts"] > 1 else ""
    since = formats.length(float(int(overview.age(moment, datetime.now(UTC)) or 0)))
    return formats.visible(f"{row['name'] or 'task'}: {row['status']}{_where(row)}{again}, {since}")


def _where(row: Row) -> str:
    if row["status"] == "queued":
        return f" for {row['target_worker_id']}" if row["target_worker_id"] else ""
    return f" on {row['worker_id']}" if row["worker_id"] else ""


def _end(task: Row, *, several: bool) -> str:
    took = f" in {formats.length(task['runtime'])}" if task["runtime"] is not None else ""
    return formats.visible(f"{_mark(task['task_id'], several=several)}{task['status']}{_where(task)}{took}")
