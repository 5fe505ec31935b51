"""`howl burst start`: start workers on GitHub's runners, or with --local on this machine."""

from typing import Any

import click

from howl.bursts import budget, detached, github, github_api
from howl.bursts.request import BurstRequest
from howl.cli.burst import here
from howl.cli.burst.watch import show_until_registered
from howl.cli.ui import formats
from howl.cli.ui.options import DURATION, NAMES, as_json
from howl.cli.ui.output import Column, emit
from howl.cli.ui.submitter import person
from howl.config import Settings, load_settings

SUMMARY = (
    Column("worker_id", "worker"),
    Column("time", "ran for", formats.length),
    Column("tasks", "tasks", formats.counts),
)


@click.command()
@click.option("--local", "on_this_machine", is_flag=True, help="Start them on this machine.")
@click.option("--workers", type=click.IntRange(1, budget.MOST_WORKERS), default=2, show_default=True, metavar="N")
@click.option(
    "--runtime", type=DURATION, default="30m", show_default=True, metavar="TIME", help="Gone after this long."
)
@click.option(
    "--grace", type=DURATION, metavar="TIME",
    help="With --local, how long before that to take no more tasks; by default 90s, or a quarter of a short runtime.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once, each; by default one a core."
)
@click.option("--tags", type=NAMES, default=(), metavar="A,B", help="Words to know them by in `howl workers`.")
@click.option("--queues", type=NAMES, default=(), metavar="A,B", help="Queues to take tasks from.")
@click.option(
    "--watch/--detach", default=True,
    help="Stay until all have registered (with --local: until all are gone), or return at once (when they have).",
)  # fmt: skip
@click.option("--burst-id", hidden=True)
@click.option("--requested-by", hidden=True)
@as_json
def start(
    on_this_machine: bool, watch: bool, burst_id: str | None, requested_by: str | None, as_json: bool, **asked: Any
) -> None:
    """Start a burst of workers.

    On GitHub's runners (HOWL_GITHUB_REPOSITORY and HOWL_GITHUB_TOKEN), the budget permitting; it waits until they have
    registered. With --local on this machine: it shows what they do, and returns when all are gone. There, Ctrl-C lets
    them end what they run (at most as long as the grace), then they go; a second one ends them at once.

    \b
    Examples:
        howl burst start --workers 3 --runtime 30m --tags linux
        howl burst start --local --workers 2 --runtime 5m
        howl burst start --local --workers 4 --concurrency 1 --tags linux,big --detach
    """
    settings = load_settings()
    if not on_this_machine and not github_api.is_configured(settings):
        raise click.UsageError(
            "Set HOWL_GITHUB_REPOSITORY and HOWL_GITHUB_TOKEN for workers on GitHub, or add --local for this machine."
        )
    if burst_id:
        asked["burst_id"] = burst_id
    request = BurstRequest(requested_by=requested_by or person(), **asked)
    if not on_this_machine:
        _start_on_github(request, settings, watch, as_json)
    elif watch:
        rows = here.run(request, settings)
        emit({"burst_id": request.burst_id, "workers": rows} if as_json else rows, as_json, columns=SUMMARY)
    else:
        _start_detached(request, settings, as_json)


def _start_on_github(request: BurstRequest, settings: Settings, watch: bool, as_json: bool) -> None:
    started = github.start(request, settings)
    click.echo(f"Burst {started.burst_id}: {started.url or f'run {started.run_id}'}", err=as_json)
    registered = show_until_registered(started.burst_id, settings).registered if watch else 0
    if as_json:
        facts = {"burst_id": started.burst_id, "run_id": started.run_id, "url": started.url, "registered": registered}
        emit(facts, as_json)


def _start_detached(request: BurstRequest, settings: Settings, as_json: bool) -> None:
    """Start the burst in another `howl burst start` process, and return when its workers have registered."""
    pid = detached.start(request, settings)
    if as_json:
        emit({"burst_id": request.burst_id, "pid": pid, "workers": request.names}, as_json)
        return
    click.echo(f"Burst {request.burst_id}: {', '.join(request.names)}")
    leave = f"`howl burst stop {request.burst_id[:12]}` or `kill {pid}`"
    click.echo(f"They leave in {formats.length(request.runtime)}; {leave} lets them go earlier.", err=True)
