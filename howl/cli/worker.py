"""`howl worker`: run a worker that takes tasks until it is told to stop."""

import click

from howl.cli.ui.options import DURATION, NAMES, application, verbose
from howl.worker.lifecycle.run import WorkerOptions, run

ORIGINS = ("server", "github-actions", "docker", "local")


@click.command()
@click.option(
    "-n", "--name", metavar="NAME",
    help="Its id, e.g. github-worker-1; by default made of the host's name, or GitHub's run.",
)  # fmt: skip
@click.option("--runtime", type=DURATION, metavar="TIME", help="Be gone after this long: 90s, 30m, 2h.")
@click.option(
    "--grace", type=DURATION, metavar="TIME",
    help="How long before that to take no more tasks; by default 90s, or a quarter of a short runtime.",
)  # fmt: skip
@click.option("--idle-exit", type=DURATION, metavar="TIME", help="Leave after so long without a task: 5m.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), metavar="N", help="Tasks at once; by default one a core."
)
@click.option("-Q", "--queues", type=NAMES, default=(), metavar="A,B", help="Queues to take tasks from.")
@click.option("--tags", type=NAMES, default=(), metavar="A,B", help="Words to know it by in `howl workers`.")
@click.option("-P", "--pool", type=click.Choice(("prefork", "threads", "solo")), default="prefork", show_default=True)
@click.option("--origin", type=click.Choice(ORIGINS), help="Where it runs; by default it finds out.")
@application
@verbose
def worker(
    name: str | None,
    runtime: float | None,
    grace: float | None,
    idle_exit: float | None,
    concurrency: int | None,
    queues: tuple[str, ...],
    tags: tuple[str, ...],
    pool: str,
    origin: str | None,
    verbose: bool,
) -> None:
    """Run a worker.

    It takes tasks until it is told to stop (Ctrl-C, SIGTERM), its runtime is nearly over, or it had none for long
    enough. Running tasks then end, and others go back on the queue; a second signal, or the end of its runtime, puts
    back those that run as well. It needs Redis and NATS (HOWL_JOIN, which `howl init join` prints on the server, or
    HOWL_REDIS_URL and HOWL_NATS_URL), never PostgreSQL.

    \b
    Examples:
        howl worker -n w1 -c 4
        howl worker --runtime 30m --idle-exit 5m --tags linux,x64
        howl worker --runtime 60s --grace 10s --pool threads
        howl worker -A proj
    """
    options = WorkerOptions(
        name=name,
        runtime=runtime,
        grace=grace,
        idle_exit=idle_exit,
        concurrency=concurrency,
        queues=queues,
        tags=tags,
        pool=pool,
        origin=origin,
        loglevel="DEBUG" if verbose else "INFO",
    )
    run(options)
