"""The demo's output: acts, lines with their times, progress, and checks that hold or do not."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from demo.work import Work

#: Seconds between two lines of progress where there is no terminal.
PLAIN_PAUSE = 3.0

Task = dict[str, Any]


class Screen:
    """The terminal's output, and the results of the checks."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.began = self.last = time.monotonic()
        self.checks: list[bool] = []
        self.acts = 0

    def act(self, title: str) -> None:
        """Print the title of the next act."""
        self.acts += 1
        self._print(f"\n[bold]{self.acts}. {title}[/bold]")

    def say(self, text: str) -> None:
        """Print a line, with the seconds since the last one if they are at least 0.05."""
        now = time.monotonic()
        took = f"  [dim]{now - self.last:.1f} s[/dim]" if now - self.last >= 0.05 else ""
        self.last = now
        self._print(f"   {text}{took}")

    def show(self, text: str) -> None:
        """Print a program's output as it is."""
        for line in text.rstrip().splitlines():
            self.console.print(f"   {line}", markup=False, soft_wrap=True)

    def check(self, claim: str, holds: bool, otherwise: object = "") -> None:
        """Print whether a claim holds and, if not, what was found instead."""
        self.checks.append(holds)
        if holds:
            self._print(f"   [green]ok[/green]      {claim}")
        else:
            self._print("   [red bold]FAILED[/red bold]  ", end="")
            self.console.print(f"{claim}: {otherwise}" if otherwise else claim, markup=False, soft_wrap=True)

    def verdict(self) -> bool:
        """Print the verdict; return whether every check held."""
        failed = self.checks.count(False)
        took = f"{time.monotonic() - self.began:.0f} s"
        if failed:
            self._print(f"\n[red bold]{failed} of {len(self.checks)} checks FAILED[/red bold] in {took}.")
            self._print("To see every log: python -m demo --keep")
        else:
            self._print(f"\n[bold green]All {len(self.checks)} checks are ok[/bold green], in {took}.")
        return not failed

    @contextmanager
    def progress(self, work: dict[str, Work]) -> Iterator[Callable[[dict[str, Task]], None]]:
        """Yield a function that shows the state of tasks, by id: live on a terminal, else a line now and then."""
        if not self.console.is_terminal:
            yield _Lines(self, work).show
            return
        with Live(console=self.console, auto_refresh=False) as live:
            yield lambda tasks: live.update(_bars(work, tasks), refresh=True)

    def _print(self, text: str, end: str = "\n") -> None:
        self.console.print(text, soft_wrap=True, end=end)


class _Lines:
    def __init__(self, screen: Screen, work: dict[str, Work]) -> None:
        self.screen = screen
        self.work = work
        self.shown_at = time.monotonic()

    def show(self, tasks: dict[str, Task]) -> None:
        if time.monotonic() - self.shown_at < PLAIN_PAUSE:
            return
        self.shown_at = time.monotonic()
        ended = ", ".join(f"{kind} {ended} of {total}" for kind, ended, total in _by_kind(self.work, tasks))
        crew = ", ".join(f"{worker} ran {ran}" for worker, ran, _ in _by_worker(tasks))
        self.screen.say(f"{ended}; {crew or 'nobody has begun'}")


def _bars(work: dict[str, Work], tasks: dict[str, Task]) -> Padding:
    """Draw a bar for each kind of task, and a line for each worker."""
    bars, crew = Table.grid(padding=(0, 2, 0, 0)), Table.grid(padding=(0, 2, 0, 0))
    for kind, ended, total in _by_kind(work, tasks):
        bars.add_row(kind, ProgressBar(total, ended, width=36), f"{ended} of {total}")
    for worker, ran, runs in _by_worker(tasks):
        crew.add_row(f"[cyan]{worker}[/cyan]", f"ran {ran}, runs {runs}")
    return Padding(Group(bars, crew), (0, 0, 0, 3))


def _by_kind(work: dict[str, Work], tasks: dict[str, Task]) -> list[tuple[str, int, int]]:
    """Return each kind with its numbers of ended and of all tasks."""
    totals = Counter(item.kind for item in work.values())
    ended = Counter(item.kind for task_id, item in work.items() if tasks.get(task_id, {}).get("finished_at"))
    return [(kind, ended[kind], total) for kind, total in totals.items()]


def _by_worker(tasks: dict[str, Task]) -> list[tuple[str, int, int]]:
    """Return each worker with its numbers of ended and of running tasks."""
    ran = Counter(str(task["worker_id"]) for task in tasks.values() if "finished_at" in task)
    runs = Counter(str(task["worker_id"]) for task in tasks.values() if task["status"] == "started")
    return [(worker, ran[worker], runs[worker]) for worker in sorted(ran | runs)]
