"""Draining and stopping workers, and reporting their answers."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.status import Status

import howl
from howl.cli.ui import formats
from howl.cli.ui.output import emit
from howl.cli.ui.task_progress import can_move
from howl.config import load_settings
from howl.connections.postgres import session
from howl.remote_shutdown import Order, require_answers, until_gone
from howl.remote_shutdown import dismiss as tell

Row = dict[str, Any]


def dismiss(worker_ids: Sequence[str], order: Order, patience: float | None, as_json: bool) -> None:
    """Order workers to leave; wait `patience` seconds for those that answered; raises WorkerSilent for the others."""
    with session(load_settings().database()) as opened:
        rows = tell(list(dict.fromkeys(worker_ids)), order, opened, howl.app)
    if not as_json:
        for row in rows:
            click.echo(_heard(row, order))
    left = _wait([row for row in rows if row["answered"]], patience) if patience is not None else []
    if as_json:
        gone = {} if patience is None else {row["worker_id"]: row not in left for row in rows}
        emit([_told(row, gone) for row in rows], as_json)
    require_answers(rows)
    if left:
        names = formats.visible(_names(left))
        raise click.ClickException(
            f"{names} not gone within {formats.length(patience)}: a task may take long. `howl workers stop` "
            "puts it back on the queue."
        )


def _told(row: Row, gone: dict[str, bool]) -> Row:
    known = {name: row[name] for name in ("worker_id", "status", "answered", "running")}
    return known | ({"gone": gone[row["worker_id"]]} if gone else {})


def _heard(row: Row, order: Order) -> str:
    name, running = formats.visible(row["worker_id"]), row["running"]
    if row["status"] == "offline":
        return f"{name} is offline already."
    if not row["answered"]:
        return f"{name} did not answer."
    if not running:
        return f"{name} leaves: nothing runs there."
    if order == "stop":
        return f"{name} leaves now, and puts back what runs there: {_tasks(running)}."
    return f"{name} takes no more tasks, and leaves when what runs there has ended: {_tasks(running)}."


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _wait(rows: list[Row], patience: float) -> list[Row]:
    """Wait until the workers are gone, and return those still there after `patience` seconds."""
    console = Console(stderr=True)
    still: list[Row] = []
    status = Status("Waiting for the workers to leave", console=console) if can_move(console) else None
    try:
        if status:
            status.start()
        for still in until_gone(rows, howl.app, patience):
            if status and still:
                status.update(f"Still there: {formats.visible(_names(still))}")
    finally:
        if status:
            status.stop()
    left = {row["worker_id"] for row in still}
    return [row for row in rows if row["worker_id"] in left]


def _names(rows: list[Row]) -> str:
    shown = ", ".join(f"{row['worker_id']} ({row['status']})" for row in rows[:5])
    return shown + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
