"""Waiting for a task: its state on standard error while it lasts, its result on standard output."""

import sys
import time
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from howl import analytics
from howl.cli import words
from howl.cli.output import emit
from howl.config import load_settings
from howl.db import session
from howl.outcomes import FINAL_STATUSES

#: Seconds between two looks: quick at first, then easy on PostgreSQL.
FIRST_LOOK, LAST_LOOK = 0.05, 1.0
PROGRESS_LENGTH = 60  # characters


def wait_for(task_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until the task has ended, at most `timeout` seconds, then print its result.

    Raises ClickException when it did not succeed, or not in time.
    """
    try:
        task = _ended(task_id, timeout)
    except KeyboardInterrupt:
        raise click.ClickException(_going_on(task_id, "No longer waiting")) from None
    if as_json:
        emit(task, as_json)
    elif task["status"] == "succeeded":
        click.echo(words.document(task["result"]))
    if task["status"] != "succeeded":
        raise click.ClickException(words.visible(_why(task)))


def _ended(task_id: str, timeout: float | None) -> dict[str, Any]:
    url = load_settings().database()
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_LOOK
    click.echo(f"Task {task_id}", err=True)
    with _status() as status:
        while (task := _look(url, task_id))["status"] not in FINAL_STATUSES:
            if deadline is not None and time.monotonic() >= deadline:
                raise click.ClickException(_going_on(task_id, f"Not ended within {words.length(timeout)}"))
            if status is not None:
                status.update(_state(task))
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.3, LAST_LOOK)
    return task


def _status() -> Any:
    """A line that moves, on a terminal only."""
    return Console(stderr=True).status("queued") if sys.stderr.isatty() else nullcontext()


def _look(url: str, task_id: str) -> dict[str, Any]:
    with session(url) as opened:
        return analytics.show_task(opened, task_id)


def _state(task: dict[str, Any]) -> Text:
    """`started on w1, queued 12 s ago: {"done": 3}`."""
    where = f" on {task['worker_id']}" if task["worker_id"] else ""
    state = f"{task['status']}{where}, queued {words.ago(task['queued_at'])}{_progress(task)}"
    return Text(words.visible(state))


def _progress(task: dict[str, Any]) -> str:
    reported = [event["data"].get("result") for event in task["events"] if event["kind"] == "progress"]
    return f": {words.clipped(words.inline(reported[-1]), PROGRESS_LENGTH)}" if reported else ""


def _why(task: dict[str, Any]) -> str:
    """What a task that did not succeed ended as."""
    error = ": ".join(part for part in (task["error_type"], task["error_message"]) if part)
    return f"Task {task['task_id']} {_ENDINGS[task['status']]}{error and f': {error}'}"


_ENDINGS = {"failed": "failed", "cancelled": "was cancelled", "expired": "expired", "dead": "is dead"}


def _going_on(task_id: str, what: str) -> str:
    return f"{what}; the task goes on: `howl tasks show {task_id}` shows it, `howl tasks cancel {task_id}` stops it."
