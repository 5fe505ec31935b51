"""`howl burst list`."""

import click

from howl.bursts import records
from howl.cli.ui import formats
from howl.cli.ui.options import DURATION, as_json
from howl.cli.ui.output import Column, emit
from howl.config import load_settings
from howl.connections.postgres import session

COLUMNS = (
    Column("burst_id", "burst", lambda burst_id: burst_id[:12]),
    Column("origin", "origin"),
    Column("status", "status"),
    Column("registered", "came", str),
    Column("num_workers", "of", str),
    Column("started_at", "started", formats.ago),
    Column("minutes_planned", "planned min", "{:.1f}".format, width_needed=100),
    Column("minutes_used", "used min", "{:.1f}".format, width_needed=100),
    Column("requested_by", "by", folds=True, width_needed=100),
    Column("reason", "why", folds=True, width_needed=120),
)


@click.command("list")
@click.option("--since", type=DURATION, default="7d", show_default=True, metavar="TIME", help="How far to look back.")
@as_json
def list_(since: float, as_json: bool) -> None:
    """List bursts, newest first.

    `came 2 of 3` are workers that have registered. A burst that has not ended is listed however old it is.

    \b
    Examples:
        howl burst list
        howl burst list --since 30d --json
    """
    with session(load_settings().database()) as opened:
        found = records.list_all(opened, since)
    emit(found, as_json, columns=COLUMNS, empty="No bursts yet. `howl burst start` starts one.")
