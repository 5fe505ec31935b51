"""`howl artifacts`: the files that tasks left behind."""

import sys
from pathlib import Path
from typing import Any

import click

from howl.artifacts import download as kept
from howl.cli.ui import formats
from howl.cli.ui.options import as_json, silence_asyncio
from howl.cli.ui.output import Column, emit
from howl.config import load_settings
from howl.connections.postgres import session
from howl.errors import InvalidRequest
from howl.queries import records

OF_A_TASK = (
    Column("name", "file", folds=True),
    Column("size", "size", formats.size),
    Column("media_type", "type", folds=True, width_needed=100),
    Column("status", "status"),
    Column("created_at", "left", formats.ago),
    Column("expires_at", "goes", formats.ago, width_needed=120),
)
COLUMNS = (Column("task_id", "task"), *OF_A_TASK)


@click.group()
def artifacts() -> None:
    """List and get the files that tasks left behind.

    \b
    Examples:
        howl artifacts list
        howl artifacts get 1f0c9a screenshot.png
    """


@artifacts.command("list")
@click.option("--task", "task_id", metavar="ID", help="Only this task's; the first characters of its id will do.")
@click.option("--limit", type=click.IntRange(1, kept.LIMIT), default=50, show_default=True, help="How many.")
@as_json
def list_(task_id: str | None, limit: int, as_json: bool) -> None:
    """List files, newest first; those of one task by name.

    A file is `kept` once the server has seen all of it. It is `missing` if it was not there as its worker had said, and
    goes after the time that the server keeps files (HOWL_ARTIFACT_RETENTION there).

    \b
    Examples:
        howl artifacts list
        howl artifacts list --task 1f0c9a
        howl artifacts list --task 1f0c9a --json | jq -r '.[].name'
    """
    with session(load_settings().database()) as opened:
        found = None if task_id is None else records.find_task_id(opened, task_id)
        rows = kept.list_artifacts(opened, task_id=found, limit=limit)
    emit(rows, as_json, columns=COLUMNS, empty="No files.")


@artifacts.command()
@click.argument("task_id", metavar="TASK")
@click.argument("names", metavar="[FILE]...", nargs=-1)
@click.option(
    "--to", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="FOLDER",
    help="Where to put them; by default a folder of the task's own, howl-artifacts/<its id>, below this one.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("--stdout", is_flag=True, help="Write the one file to standard output instead.")
@as_json
def get(task_id: str, names: tuple[str, ...], folder: Path | None, force: bool, stdout: bool, as_json: bool) -> None:
    """Get files that a task left, all of them when none is named.

    The first characters of the task's id will do. Each file appears whole, its SHA-256 checked, or not at all; nothing
    is written outside the folder, and nothing overwritten without --force. A worker wrote them, and chose their names:
    look at them before you run one, and do not fetch them into a folder that you work in.

    \b
    Examples:
        howl artifacts get 1f0c9a screenshot.png
        howl artifacts get 1f0c9a --to shots/
        howl artifacts get 1f0c9a report.json --stdout | jq .
    """
    silence_asyncio()
    settings = load_settings()
    with session(settings.database()) as opened:
        found = records.find_task_id(opened, task_id)
        wanted = names or [row["name"] for row in kept.list_artifacts(opened, task_id=found, limit=kept.LIMIT)]
        rows = [kept.find(opened, found, name) for name in wanted]
    if stdout:
        _print(settings, rows)
        return
    into = folder or (kept.own_folder(found) if rows else Path())
    saved = [{"path": str(kept.save(settings, row, into, overwrite=force)), **_facts(row)} for row in rows]
    emit(saved, as_json, columns=(Column("path", "file", folds=True), Column("size", "size", formats.size)),
         empty=f"Task {found} left no files.")  # fmt: skip


def _print(settings: Any, rows: list[dict[str, Any]]) -> None:
    if len(rows) != 1:
        raise InvalidRequest(f"--stdout is for one file, and these are {len(rows)}: name one.")
    out = sys.stdout.buffer
    if out.isatty():
        raise InvalidRequest("A worker's file may steer a terminal: write it into a pipe, or leave --stdout out.")
    kept.read(settings, rows[0], out)
    out.flush()


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("name", "media_type", "size", "sha256")}
