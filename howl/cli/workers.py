"""`howl workers`: list, show, drain and stop workers."""

import click

from howl.cli.ui import formats
from howl.cli.ui.options import DURATION, Decorator, as_json
from howl.cli.ui.output import Column, emit
from howl.cli.ui.worker_shutdown import dismiss
from howl.config import load_settings
from howl.connections.postgres import session
from howl.models import PRESENT
from howl.queries import records
from howl.remote_shutdown import present

COLUMNS = (
    Column("worker_id", "worker", folds=True),
    Column("status", "status"),
    Column("origin", "origin"),
    Column("running", "runs", str),
    Column("concurrency", "of", str),
    Column("last_heartbeat_at", "heard", formats.ago),
    Column("deadline_at", "leaves", formats.ago),
    Column("tags", "tags", folds=True, width_needed=100),
    Column("queues", "queues", folds=True, width_needed=100),
)

names: Decorator = click.argument("worker_ids", metavar="WORKER...", nargs=-1)
wait: Decorator = click.option("--wait", is_flag=True, help="Wait until they have left.")
timeout: Decorator = click.option(
    "--timeout", type=DURATION, default="15m", show_default=True, metavar="TIME", help="With --wait: no longer."
)


@click.group()
def workers() -> None:
    """List, show, drain and stop workers.

    \b
    Examples:
        howl workers list
        howl workers show github-worker-1
        howl workers drain github-worker-1 --wait
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
        found = records.list_workers(opened, status=None if everyone else PRESENT)
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
        worker = records.show_worker(opened, worker_id)
    emit(worker, as_json, read={"tasks": formats.counts, "success_rate": formats.share})


@workers.command()
@names
@click.option("--all", "everyone", is_flag=True, help="All workers that are there.")
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
@wait
@timeout
@as_json
def drain(worker_ids: tuple[str, ...], everyone: bool, yes: bool, wait: bool, timeout: float, as_json: bool) -> None:
    """Have workers take no more tasks, finish what runs, and leave.

    What they held and had not begun goes back on its queue at once. It is what their first SIGTERM does. A worker says
    that it has heard; one of the solo pool hears only between two tasks. Drained workers that a service manager starts
    again (`restart: unless-stopped`) come back.

    \b
    Examples:
        howl workers drain github-worker-1
        howl workers drain w1 w2 --wait --timeout 30m
        howl workers drain --all --yes
    """
    if everyone == bool(worker_ids):
        raise click.UsageError("Name workers, or give --all.")
    if everyone:
        with session(load_settings().database()) as opened:
            worker_ids = tuple(present(opened))
        if worker_ids and not yes:
            click.confirm(
                f"Drain {len(worker_ids)} workers ({formats.clipped(', '.join(worker_ids), 60)})?", abort=True
            )
    dismiss(worker_ids, "drain", timeout if wait else None, as_json)


@workers.command()
@names
@wait
@timeout
@as_json
def stop(worker_ids: tuple[str, ...], wait: bool, timeout: float, as_json: bool) -> None:
    """Have workers leave now: what runs on them goes back on its queue, and begins again elsewhere.

    It is what their second SIGTERM does, and works on workers that drain. `howl workers drain` lets tasks end.

    \b
    Examples:
        howl workers stop github-worker-1
        howl workers stop w1 w2 --wait --json
    """
    if not worker_ids:
        raise click.UsageError("Name workers; `howl workers list` shows who is there.")
    dismiss(worker_ids, "stop", timeout if wait else None, as_json)
