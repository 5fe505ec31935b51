"""Helpers for long commands: their progress on a terminal, and their orderly end on a signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from howl.backup.archive import Progress as Told

#: Signals of a stopping machine and of a lost terminal; Python handles Ctrl-C itself.
ENDINGS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def progress() -> Iterator[Told]:
    """Show a line per step on standard error, if that is a terminal; standard output is for the result."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        steps = {}

        def tell(step: str, done: int, total: int | None) -> None:
            if step not in steps:
                steps[step] = shown.add_task(step, total=total)
            shown.update(steps[step], completed=done, total=total)

        yield tell


@contextmanager
def undoing_when_told_to_stop() -> Iterator[None]:
    """Treat signals that would end the process at once like Ctrl-C, so that unfinished output is removed first."""
    before = {number: signal.signal(number, _like_ctrl_c) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _like_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
