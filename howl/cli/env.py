"""`howl env`: print the addresses of the servers, for a shell."""

import shlex
import shutil
from urllib.parse import parse_qs, unquote, urlsplit

import click

from howl.config import Settings, load_settings
from howl.embedded import binaries
from howl.errors import EmbeddedServerError

#: Variables that libpq reads, by the name of the URL's parameter.
QUERY_VARIABLES = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}


@click.command()
@click.argument("which", type=click.Choice(("redis", "nats", "database")), required=False)
def env(which: str | None) -> None:
    """Print where the servers are, for a shell.

    Passwords are part of it. Without an argument: a line `export NAME=value` for each address that is known, with
    what psql reads; where no psql is installed, the one that came with howl[embedded] is put on PATH.

    \b
    Examples:
        eval "$(howl env)"; psql -c 'SELECT worker_id, status FROM workers'
        redis-cli -u "$(howl env redis)" ping
        howl env database
    """
    settings = load_settings()
    if which is not None:
        click.echo({"redis": settings.redis, "nats": settings.nats, "database": settings.database}[which]())
        return
    for name, value in variables(settings).items():
        click.echo(f"export {name}={shlex.quote(value)}")
    if settings.database_url and (folder := _folder_of_psql()):
        click.echo(f'export PATH="$PATH":{shlex.quote(folder)}')


def variables(settings: Settings) -> dict[str, str]:
    """Return the known addresses and settings of the servers, by variable; raises NotConfigured if there are none."""
    urls = {
        "HOWL_REDIS_URL": settings.redis_url,
        "HOWL_NATS_URL": settings.nats_url,
        "HOWL_DATABASE_URL": settings.database_url,
    }
    if not any(urls.values()):
        settings.redis()
    authority = {"HOWL_CA_FILE": str(settings.ca_file.absolute())} if settings.ca_file else {}
    return {name: url for name, url in urls.items() if url} | authority | _for_libpq(settings.database_url or "")


def _for_libpq(url: str) -> dict[str, str]:
    parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
    found = {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port or "") if url else None,
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.removeprefix("/")),
    } | {variable: query.get(name, [""])[0] for name, variable in QUERY_VARIABLES.items()}
    return {name: value for name, value in found.items() if value}


def _folder_of_psql() -> str | None:
    """Return the folder of the psql from howl[embedded]; None if a psql is on PATH already."""
    if shutil.which("psql"):
        return None
    try:
        return str(binaries.psql().parent)
    except EmbeddedServerError:
        return None  # no howl[embedded] here, and psql is a convenience
