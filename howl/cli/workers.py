"""`howl workers`: who works, and where."""

import click

from howl import analytics
from howl.cli import words
from howl.cli.options import as_json
from howl.cli.output import Column, emit
from howl.config import load_settings
from howl.db import session

#: What a list shows without --all.
PRESENT = ("active", "draining")

COLUMNS = (
    Column("worker_id", "worker", folds=True),
    Column("status", "status"),
    Column("origin", "origin"),
    Column("running", "runs", str),
    Column("concurrency", "of", str),
    Column("last_heartbeat_at", "heard", words.ago),
    Column("deadline_at", "leaves", words.ago),
    Column("tags", "tags", folds=True, width_needed=100),
    Column("queues", "queues", folds=True, width_needed=100),
)


@click.group()
def workers() -> None:
    """List and show workers.

    \b
    Examples:
        howl workers list
        howl workers show github-worker-1
    """


@workers.command("list")
@click.option("--all", "everyone", is_flag=True, help="Those that are offline or lost, too.")
@as_json
def list_(everyone: bool, as_json: bool) -> None:
    """List workers, those heard of last first.

    `runs 1 of 4` is one task running where four can.

    \b
    Examples:
        howl workers list
        howl workers list --all --json
    """
    with session(load_settings().database()) as opened:
        found = analytics.list_workers(opened, status=None if everyone else PRESENT)
    empty = "No workers yet." if everyone else "No workers are active; `--all` lists those that were."
    emit(found, as_json, columns=COLUMNS, empty=f"{empty} `howl worker` starts one.")


@workers.command()
@click.argument("worker_id", metavar="WORKER")
@as_json
def show(worker_id: str, as_json: bool) -> None:
    """Show a worker: where it runs, for how long, and how its tasks ended.

    \b
    Examples:
        howl workers show github-worker-1
        howl workers show github-worker-1 --json
    """
    with session(load_settings().database()) as opened:
        worker = analytics.show_worker(opened, worker_id)
    emit(worker, as_json, read={"tasks": words.counts, "success_rate": words.share})
