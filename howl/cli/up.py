"""`howl up`: run all servers on this machine, in the foreground."""

import shlex
import sys
from functools import partial
from pathlib import Path

import click

from howl.cli.ui.options import application, configure_logging, verbose
from howl.config import load_settings
from howl.embedded.stack import Stack
from howl.embedded.up import run
from howl.local_stack import default_home


@click.command()
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder their data, logs and passwords are kept in; by default HOWL_HOME.",
)
@application
@verbose
def up(home: Path | None, verbose: bool) -> None:
    """Run all servers on this machine, in the foreground.

    Redis, NATS and PostgreSQL start on loopback ports, the same each time unless somebody took them, with random
    passwords, the tables are brought up to date, and `howl server` runs; Ctrl-C (or SIGTERM) ends it all, and the data
    stays for the next time. Other commands of the same user find these servers by themselves. It is for one machine; a
    real server is `docker compose up`.

    \b
    Examples:
        howl up
        howl up --home ./state
    """
    configure_logging(verbosely=verbose)
    settings = load_settings()
    chosen = (home or settings.home).absolute()
    run(chosen, verbose=verbose, when_up=partial(_welcome, chosen, settings.redis_url))


def _welcome(home: Path, configured: str | None, stack: Stack) -> None:
    click.echo(f"HOWL is up; its data is in {home}. Ctrl-C ends it. In a second terminal:\n")
    if home != default_home().absolute():
        click.echo(f"  export HOWL_HOME={shlex.quote(str(home))}")
    if configured not in (None, stack.urls.redis_url):
        click.echo("  unset HOWL_REDIS_URL HOWL_NATS_URL HOWL_DATABASE_URL    # they name other servers")
    elif stack.has_moved:
        click.echo(
            "  unset HOWL_REDIS_URL HOWL_NATS_URL HOWL_DATABASE_URL    # where `howl env` set them: its ports are new"
        )
    click.echo(
        "  howl worker --name w1                                        a worker\n"
        """  howl submit command.run --args '[["uname", "-a"]]' --wait    a task\n"""
        "  howl tasks list                                              what became of it\n"
        """  eval "$(howl env)"; psql                                     the tables themselves\n"""
    )
    sys.stdout.flush()
