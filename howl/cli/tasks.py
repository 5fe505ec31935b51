"""`howl tasks`: list, show, watch, cancel and retry tasks."""

from collections.abc import Callable
from textwrap import indent
from typing import Any

import click

import howl
from howl.cli.artifacts import OF_A_TASK
from howl.cli.ui import formats
from howl.cli.ui.options import DURATION, as_json, since
from howl.cli.ui.output import Column, emit
from howl.cli.ui.wait import watch
from howl.config import load_settings
from howl.connections.postgres import session
from howl.models import TASK_STATUSES
from howl.outcomes import FINAL_STATUSES
from howl.queries import records
from howl.run_progress import in_words
from howl.submission import cancel, retry

COLUMNS = (
    Column("task_id", "task"),
    Column("status", "status"),
    Column("name", "name", folds=True),
    Column("worker_id", "worker", folds=True, width_needed=100),
    Column("queued_at", "queued", formats.ago),
    Column("runtime", "took", formats.length, width_needed=100),
    Column("error_message", "error", lambda text: formats.clipped(text, 40), folds=True, width_needed=140),
)
EVENT_COLUMNS = (
    Column("at", "when", formats.ago),
    Column("kind", "event"),
    Column("worker_id", "worker", folds=True),
    Column("data", "details", lambda data: formats.clipped(formats.inline(data), 200) if data else "", folds=True),
)
#: Values that `show` prints below the rest.
BLOCKS = ("result", "traceback")
READ: dict[str, Callable[[Any], str]] = {
    "runtime": formats.length,
    "time_limit": formats.length,
    "progress": in_words,
    "log": "\n".join,
}


@click.group()
def tasks() -> None:
    """List, show, watch, cancel and retry tasks.

    \b
    Examples:
        howl tasks list --status failed --since 2h
        howl tasks show 1f0c9a
        howl tasks watch 1f0c9a
        howl tasks cancel 1f0c9a
    """


@tasks.command("list")
@click.option("--status", type=click.Choice(TASK_STATUSES), help="Only tasks of this status.")
@click.option("--name", metavar="NAME", help="Only tasks of this name, e.g. web.fetch.")
@click.option("--worker", "worker_id", metavar="WORKER", help="Only what this worker ran or was assigned.")
@click.option("--queue", metavar="QUEUE", help="Only tasks of this queue.")
@click.option("--limit", type=click.IntRange(1, records.LIMIT), default=50, show_default=True, help="How many.")
@since()
@as_json
def list_(
    status: str | None,
    name: str | None,
    worker_id: str | None,
    queue: str | None,
    limit: int,
    since: str | None,
    as_json: bool,
) -> None:
    """List tasks, newest first.

    \b
    Examples:
        howl tasks list
        howl tasks list --status started --worker github-worker-1
        howl tasks list --name web.fetch --since 24h --json
    """
    with session(load_settings().database()) as opened:
        found = records.list_tasks(
            opened, status=status, name=name, worker_id=worker_id, queue=queue, limit=limit, since=since
        )
    emit(found, as_json, columns=COLUMNS, empty="No such tasks.")


@tasks.command()
@click.argument("task_id", metavar="ID")
@as_json
def show(task_id: str, as_json: bool) -> None:
    """Show a task: its arguments, progress, last lines, result or error, the files it left, its latest events.

    The first characters of an id will do, six or more.

    \b
    Examples:
        howl tasks show 1f0c9a
        howl tasks show 1f0c9a --json | jq .result
    """
    with session(load_settings().database()) as opened:
        task = records.show_task(opened, task_id)
    if as_json:
        emit(task, as_json)
    else:
        _print_task(task)


@tasks.command("watch")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--timeout", type=DURATION, metavar="TIME", help="Watch no longer; the task goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for all that happens, for programs.")
def watch_(task_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Watch tasks live until they have ended: progress, the lines they write, then their results.

    Progress and lines go to standard error, results to standard output: a bar on a terminal, plain lines elsewhere.
    It ends with status 0 when all have succeeded. Ctrl-C ends the watching, not the tasks. The first characters of an
    id will do, six or more.

    With --json each line has task_id, at, kind, worker_id and data. Kinds: first `task` (how it stands), then what
    happens (`received`, `started`, `progress`, `log`, …), last `result`: all that `howl tasks show --json` prints.

    \b
    Examples:
        howl tasks watch 1f0c9a
        howl tasks watch 1f0c9a 77b21e --timeout 10m
        howl tasks watch 1f0c9a --json | jq 'select(.kind == "progress").data'
    """
    watch(task_ids, timeout, as_json)


@tasks.command("cancel")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@as_json
def cancel_(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks: those that wait never start, those that run are stopped.

    All ids are looked up first: when one is unknown, nothing is cancelled. A task that has ended stays as it is.

    \b
    Examples:
        howl tasks cancel 1f0c9a
        howl tasks cancel 1f0c9a 77b21e
    """
    with session(load_settings().database()) as opened:
        found = [records.find_task_id(opened, given) for given in task_ids]
        answers = [{"task_id": task_id, "status_before": cancel(task_id, opened, howl.app)} for task_id in found]
    if as_json:
        emit(answers, as_json)
        return
    for answer in answers:
        click.echo(formats.visible(_cancelled(**answer)))


def _cancelled(task_id: str, status_before: str) -> str:
    if status_before in FINAL_STATUSES:
        return f"{task_id} had ended already: {status_before}."
    return f"{task_id} was {status_before} and is being cancelled."


def _print_task(task: dict[str, Any]) -> None:
    """Print facts in a table, long texts unfolded because a folded traceback cannot be read, then files and events."""
    events, artifacts = task.pop("events"), task.pop("artifacts")
    blocks = {name: task.pop(name) for name in BLOCKS}
    emit(task, as_json=False, read=READ)
    for name, value in blocks.items():
        if value is not None:
            click.echo(f"\n{name}:\n{indent(formats.document(value), '  ')}")
    if artifacts:
        click.echo()
        emit(artifacts, as_json=False, columns=OF_A_TASK)
    if events:
        click.echo()
        emit(events, as_json=False, columns=EVENT_COLUMNS)


@tasks.command("retry")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@as_json
def retry_(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Queue tasks again that failed, died or expired, each as the same task.

    A task is dead when more than five runs of it died with their process, or were broken off as their workers left: it
    is then kept, and not started by itself.

    \b
    Examples:
        howl tasks list --status dead
        howl tasks retry 1f0c9a
    """
    with session(load_settings().database()) as opened:
        found = [records.find_task_id(opened, given) for given in task_ids]
        for task_id in found:
            retry(task_id, opened, howl.app)
    rows = [{"task_id": task_id, "status": "queued"} for task_id in found]
    emit(rows, as_json, columns=(Column("task_id", "task"), Column("status", "status")))
