"""`howl analytics`: statistics of tasks, workers, queues and bursts."""

from collections.abc import Callable
from typing import Any

import click

from howl.cli.ui import formats
from howl.cli.ui.options import as_json, since
from howl.cli.ui.output import Column, emit
from howl.config import load_settings
from howl.connections.postgres import session
from howl.queries import statistics

READ: dict[str, Callable[[Any], str]] = {
    "tasks": formats.counts,
    "workers": formats.counts,
    "workers_by_origin": formats.counts,
    "success_rate": formats.share,
    "runtime_median": formats.length,
    "runtime_p95": formats.length,
    "runtime_max": formats.length,
}

ENDED = Column("tasks", "tasks", formats.counts, folds=True)
SPEED = (
    Column("runtime_median", "median", formats.length),
    Column("runtime_p95", "p95", formats.length),
)
COLUMNS = {
    "overview": (Column("hour", "hour", formats.hour), Column("ended", "tasks ended", str)),
    "worker": (
        Column("worker_id", "worker", folds=True),
        Column("status", "status"),
        ENDED,
        *SPEED,
        Column("busy_seconds", "busy", formats.length),
        Column("last_seen", "seen", formats.ago),
    ),
    "task": (
        Column("name", "task", folds=True),
        ENDED,
        Column("success_rate", "success", formats.share),
        *SPEED,
        Column("runtime_max", "max", formats.length),
        Column("wait_median", "waited", formats.length),
    ),
    "queue": (
        Column("queue", "queue", folds=True),
        Column("waiting", "waiting", str),
        Column("oldest_waiting", "oldest", formats.length),
        Column("running", "running", str),
        ENDED,
        Column("wait_median", "waited", formats.length),
    ),
    "burst": (
        Column("burst_id", "burst"),
        Column("origin", "origin"),
        Column("num_workers", "workers", str),
        Column("minutes_planned", "planned min", "{:.1f}".format, width_needed=100),
        Column("minutes_used", "used min", "{:.1f}".format, width_needed=100),
        Column("started_at", "started", formats.ago),
        Column("ended_at", "ended", formats.ago),
    ),
}


@click.command()
@click.argument("entity_type", type=click.Choice(tuple(statistics.QUESTIONS)), default="overview")
@click.argument("entity_id", required=False)
@since(default=statistics.DEFAULT_TIME_RANGE)
@as_json
def analytics(entity_type: str, entity_id: str | None, since: str, as_json: bool) -> None:
    """Show how tasks, workers, queues and bursts fared.

    ENTITY_TYPE is overview, worker, task, queue or burst; ENTITY_ID picks one: a worker, a task's name, a queue, a
    burst. Counted are tasks queued within the time looked back on; `waited` is the median time from queued to
    started, `success` the share of those that ran to an end.

    \b
    Examples:
        howl analytics
        howl analytics worker --since 2h
        howl analytics task web.fetch --since 7d --json
    """
    with session(load_settings().database()) as opened:
        answer = statistics.analytics(opened, entity_type, entity_id, since)
    if as_json:
        emit(answer, as_json)
    elif entity_type == "overview":
        _print_overview(answer["rows"][0])
    else:
        empty = f"Nothing is recorded of any {entity_type} in the last {since}."
        emit(answer["rows"], as_json, columns=COLUMNS[entity_type], empty=empty)


def _print_overview(facts: dict[str, Any]) -> None:
    hours = facts.pop("throughput")
    emit(facts, as_json=False, read=READ)
    if hours:
        click.echo()
        emit(hours, as_json=False, columns=COLUMNS["overview"])
