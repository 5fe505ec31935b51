"""`howl migrate`: bring the database's tables to this version's."""

import click

from howl.cli.ui.options import configure_logging, verbose
from howl.config import load_settings
from howl.server import migrate as migrations


@click.command()
@verbose
def migrate(verbose: bool) -> None:
    """Bring the database's tables to this version's.

    It runs the migrations that are missing, in one transaction: all or none. HOWL_DATABASE_URL (or POSTGRES_HOST and
    so on) says where, with the role that owns the tables. Stop `howl server` first, and make a backup. `howl up` does
    this by itself, and in compose `docker compose run --rm migrate` does.

    \b
    Examples:
        howl migrate
        HOWL_DATABASE_URL=postgresql://howl:secret@db/mcp_manager howl migrate -v
    """
    configure_logging(verbosely=verbose)
    url = load_settings().database()
    migrations.upgrade(url)
    click.echo(f"The tables are at migration {migrations.head()}, the newest.")
