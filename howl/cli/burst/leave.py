"""`howl burst leave`: admission of a run, requested by its planning job or by a job that is run again without it."""

import json

import click

from howl.bursts.admission import ask, this_run
from howl.cli.ui.options import DURATION, NAMES, as_json, silence_asyncio
from howl.config import load_settings
from howl.errors import BurstRefused


@click.command()
@click.option("--workers", type=click.IntRange(min=1), required=True, metavar="N", help="Jobs of this run.")
@click.option("--runtime", type=DURATION, default="30m", show_default=True, metavar="TIME", help="How long each works.")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once, each.")
@click.option("--tags", type=NAMES, default=(), metavar="A,B", help="For the record.")
@click.option("--queues", type=NAMES, default=(), metavar="A,B", help="For the record.")
@click.option("--burst-id", metavar="ID", help="The burst that this run was started for, if one was.")
@click.option(
    "--index", type=click.IntRange(1, 256), metavar="I", help="The one job that asks, being run again without the plan."
)
@as_json
def leave(
    workers: int,
    runtime: float,
    concurrency: int | None,
    tags: tuple[str, ...],
    queues: tuple[str, ...],
    burst_id: str | None,
    index: int | None,
    as_json: bool,
) -> None:
    """Ask the server whether this run may work.

    For the planning job of a GitHub Actions run, which has HOWL_JOIN and no database: the server's budget decides. A
    run that asks again gets the same answer, its next attempt one of its own: GitHub's "Re-run failed jobs" does not
    run the planning job again, so each job then asks for itself, with --index.

    With --json a refusal, too, ends with status 0: its `matrix` is empty and its `reason` says why.

    \b
    Examples:
        howl burst leave --workers 3 --runtime 30m
        howl burst leave --workers 3 --runtime 30m --json
        howl burst leave --workers 1 --index 2 --runtime 30m --json
    """
    silence_asyncio()
    settings = load_settings()
    request = this_run(
        settings,
        workers=workers,
        runtime=runtime,
        concurrency=concurrency,
        tags=list(tags),
        queues=list(queues),
        burst_id=burst_id or None,
        index=index,
    )
    answer = ask(request, settings)
    if as_json:
        click.echo(json.dumps(answer.model_dump(exclude={"failed"})))
    elif answer.granted:
        click.echo(f"Burst {answer.burst_id}: {', '.join(job.name for job in answer.matrix)}")
    else:
        raise BurstRefused(answer.reason or "The server refuses.")
