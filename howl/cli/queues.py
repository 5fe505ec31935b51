"""`howl queues`: show waiting messages, claims, and what is set aside."""

from typing import Any

import click

from howl.cli.ui import formats
from howl.cli.ui.options import as_json
from howl.cli.ui.output import Column, emit
from howl.config import Settings, load_settings
from howl.connections.postgres import session
from howl.queries import overview
from howl.queries.queues import survey

COLUMNS = (
    Column("queue", "queue", folds=True),
    Column("waiting", "waiting", str),
    Column("claimed", "claimed", str),
    Column("oldest", "oldest", formats.length),
    Column("owners", "by", lambda owners: ", ".join(owners), folds=True),
)
#: Facts shown below the table, in this order, those that are not empty.
ASIDE = ("unserved", "parked", "unknown", "deaths", "dead", "unreadable", "outcomes_waiting", "outcomes_bytes",
         "held_up", "in_flight", "removed", "set_aside")  # fmt: skip


@click.command()
@as_json
def queues(as_json: bool) -> None:
    """Show what waits, who holds what, what is parked or dead.

    `oldest` is how long the longest-waiting submitted task has waited. Dead tasks are kept: `howl tasks retry ID`.
    `unknown`: tasks that the worker which took them does not know; they go back for one that does.
    `unserved`: queues in which something waits, and no active worker takes anything from.
    `held_up`: so many outcomes wait to be recorded that workers take no tasks; look whether `howl server` runs.
    `removed`: what workers of a Redis user wrote within a day or so, and was too large or too much.
    `set_aside`: what `howl server` gave up within a day or so, after a few tries: chords, tasks, messages.

    \b
    Examples:
        howl queues
        howl queues --json
    """
    settings = load_settings()
    found = survey(settings)
    ages, served = _told_by_record(settings)
    for row in found["queues"]:
        row["oldest"] = ages.get(row["queue"])
    waiting = [row["queue"] for row in found["queues"] if row["waiting"]]
    found["unserved"] = [] if served is None else [queue for queue in waiting if queue not in served]
    if as_json:
        emit(found, as_json)
        return
    emit(found["queues"], as_json, columns=COLUMNS, empty="No queue holds anything.")
    emit({name: found[name] for name in ASIDE if found[name]}, as_json)


def _told_by_record(settings: Settings) -> tuple[dict[str, Any], set[str] | None]:
    """Return seconds waited by queue (only submitted tasks have a row before they start), and queues with workers."""
    if not settings.database_url:
        return {}, None
    with session(settings.database()) as opened:
        return overview.longest_waits(opened), overview.served_queues(opened)
