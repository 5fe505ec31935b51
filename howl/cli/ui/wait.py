"""Watching tasks until they end: progress and output on standard error, results on standard output."""

from collections.abc import Sequence
from typing import Any

import click

from howl.cli.ui import formats
from howl.cli.ui.follow import Followed, follow
from howl.cli.ui.output import emit
from howl.cli.ui.task_progress import NdJson, Teller, teller
from howl.config import load_settings
from howl.connections.postgres import session
from howl.outcomes import in_command
from howl.queries import records

Row = dict[str, Any]


def wait_for(task_id: str, timeout: float | None, as_json: bool) -> Row:
    """Show a task live until it has ended, at most `timeout` seconds, then print its result and return the task.

    Raises ClickException if it did not succeed, or did not end in time.
    """
    (task,) = _ended([task_id], timeout)
    if as_json:
        emit(task, as_json)
    elif task["status"] == "succeeded":
        click.echo(formats.document(task["result"]))
    _require_success([task])
    return task


def watch(task_ids: Sequence[str], timeout: float | None, as_json: bool) -> None:
    """Show several tasks live until they have ended, then print their results; with `as_json`, print events as JSON.

    Raises UnknownTask, or ClickException as `wait_for` does.
    """
    with session(load_settings().database()) as opened:
        found = list(dict.fromkeys(records.find_task_id(opened, given) for given in task_ids))
    tasks = _ended(found, timeout, NdJson() if as_json else None)
    if not as_json:
        _print_results(tasks)
    _require_success(tasks)


def _ended(task_ids: list[str], timeout: float | None, told: Teller | None = None) -> list[Row]:
    """Return the finished tasks, whole, in the given order; show them on `told`, by default on standard error."""
    url = load_settings().database()
    ended: dict[str, Row] = {}
    going_on: list[Followed] = []
    several = len(task_ids) > 1
    try:
        if told is None:
            click.echo(f"{len(task_ids)} tasks" if several else formats.visible(f"Task {task_ids[0]}"), err=True)
            told = teller(several=several)
        with told:
            for look in follow(url, task_ids, timeout):
                going_on = look.going_on
                told.look(look)
                for task in look.over:
                    ended[task.task_id] = _whole(url, task.task_id)
                    told.over(ended[task.task_id])
    except KeyboardInterrupt:
        raise click.ClickException(
            _going_on([task.task_id for task in going_on] or task_ids, "No longer waiting")
        ) from None
    if going_on:
        raise click.ClickException(
            _going_on([task.task_id for task in going_on], f"Not ended within {formats.length(timeout)}")
        )
    return [ended[task_id] for task_id in task_ids]


def _whole(url: str, task_id: str) -> Row:
    with session(url) as opened:
        return records.show_task(opened, task_id)


def _print_results(tasks: list[Row]) -> None:
    """Print one result alone, so that it can be piped; several below their ids, as `tail` prints files."""
    for task in tasks:
        if len(tasks) > 1:
            click.echo(formats.visible(f"==> {task['task_id']} {task['status']} <=="))
        if task["status"] == "succeeded":
            click.echo(formats.document(task["result"]))


def _require_success(tasks: list[Row]) -> None:
    failed = [formats.visible(_why(task)) for task in tasks if task["status"] != "succeeded"]
    if failed and len(tasks) > 1:
        failed.append(f"{len(failed)} of {len(tasks)} tasks did not succeed.")
    if failed:
        raise click.ClickException("\n".join(failed))


def _why(task: Row) -> str:
    """Describe how a task that did not succeed ended."""
    error = ": ".join(part for part in (task["error_type"], task["error_message"]) if part)
    return f"Task {task['task_id']} {_ENDINGS[task['status']]}{error and f': {error}'}"


_ENDINGS = {"failed": "failed", "cancelled": "was cancelled", "expired": "expired", "dead": "is dead"}


def _going_on(task_ids: list[str], what: str) -> str:
    task_id = in_command(task_ids[0])
    advice = f"`howl tasks show {task_id}` shows it, `howl tasks cancel {task_id}` stops it."
    if len(task_ids) == 1:
        return f"{what}; the task goes on: {advice}"
    return f"{what}; {len(task_ids)} tasks go on. The first of them: {advice}"
