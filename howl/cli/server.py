"""`howl server`: run the persistent side."""

import click

from howl.cli.ui.options import application, configure_logging, verbose
from howl.config import load_settings
from howl.server import service


@click.command()
@application
@verbose
def server(verbose: bool) -> None:
    """Run the persistent side.

    It records what became of tasks, keeps the list of workers, and pushes again what Redis lost. It needs Redis, NATS
    and PostgreSQL (HOWL_REDIS_URL, HOWL_NATS_URL, HOWL_DATABASE_URL) and runs until it is told to stop (Ctrl-C,
    SIGTERM). On a machine of your own, `howl up` runs it with everything it needs.

    \b
    Examples:
        howl server
        howl server --app proj
        HOWL_DATABASE_URL=postgresql://howl:secret@db/mcp_manager howl server -v
    """
    configure_logging(verbosely=verbose)
    service.main(load_settings())
