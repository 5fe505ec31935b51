"""`howl flower`: serve Celery's web page of workers and tasks, behind a password."""

import logging
from functools import partial

import click

import howl
from howl.cli.ui.options import application, configure_logging, verbose
from howl.config import LOOPBACK_HOSTS, Settings, load_settings
from howl.errors import NotConfigured
from howl.files import write_private
from howl.local_stack import running_stack
from howl.provision.state import new_password
from howl.server.flower import House, run


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=5555, show_default=True, envvar="FLOWER_PORT",
              help="0: any that is free.")  # fmt: skip
@click.option("--address", default="127.0.0.1", show_default=True, envvar="FLOWER_ADDRESS",
              help="Of this machine; one that others reach needs FLOWER_BASIC_AUTH.")  # fmt: skip
@click.option("--url-prefix", default="", envvar="FLOWER_URL_PREFIX", metavar="PATH",
              help="What all its addresses begin with, behind a proxy.")  # fmt: skip
@click.option("--read-only", is_flag=True, envvar="FLOWER_READ_ONLY", help="Refuse all that changes something.")
@application
@verbose
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF FLOWER]")
def flower(port: int, address: str, url_prefix: str, read_only: bool, verbose: bool, options: tuple[str, ...]) -> None:
    """Serve Flower, Celery's web page of workers and tasks, behind a password.

    FLOWER_BASIC_AUTH, which `howl init` writes into .env, says who may log in: user:password, with commas between
    several. With the servers of `howl up` a password is made once and kept. Every page and call asks for it, /metrics
    too; /healthcheck answers this machine without. What Flower has seen is kept in HOWL_HOME, and there again when it
    starts the next time. Flower's own options come after --; `howl flower -- --help` lists them.

    \b
    Examples:
        howl flower
        howl flower --port 5556 --read-only
        howl flower -- --max_tasks=50000 --purge_offline_workers=86400
        ssh -L 5555:127.0.0.1:5555 my.server        then http://127.0.0.1:5555
    """
    configure_logging(verbosely=verbose)
    logging.getLogger("tornado.access").setLevel(logging.INFO if verbose else logging.WARNING)
    settings = load_settings()
    settings.redis()
    credentials, where = _who_may_enter(settings, address)
    house = House(
        credentials=credentials,
        folder=settings.home / "flower",
        address=address,
        port=port,
        url_prefix=url_prefix,
        read_only=read_only,
    )
    run(howl.app, house, options, partial(_welcome, credentials, where))


def _who_may_enter(settings: Settings, address: str) -> tuple[tuple[str, ...], str]:
    """Return the credentials, and where a person finds the password."""
    if settings.flower_basic_auth:
        return settings.flower_basic_auth, "FLOWER_BASIC_AUTH has the password"
    path = settings.home / "flower" / "password"
    if address not in LOOPBACK_HOSTS or running_stack(settings.home).get("redis_url") != settings.redis_url:
        raise NotConfigured("Nobody could log in: set FLOWER_BASIC_AUTH=user:password, in .env or the environment.")
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, new_password())
    return (f"howl:{path.read_text().strip()}",), f"the password is in {path}"


def _welcome(credentials: tuple[str, ...], where: str, url: str) -> None:
    users = " or ".join(credential.partition(":")[0] for credential in credentials)
    click.echo(f"Flower is up at {url}; log in as {users}, {where}. Ctrl-C ends it.")
