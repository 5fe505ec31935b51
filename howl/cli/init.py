"""`howl init`: make a real server's secrets, certificates and configuration."""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Any

import click

from howl.cli.ui.options import NAMES
from howl.provision.folder import Folder, build
from howl.provision.join import grant, join_string
from howl.provision.provided_certificate import read_given
from howl.provision.reload import tell
from howl.provision.rotate import rotate as rotated
from howl.provision.state import State

HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")

path_of_a_file = click.Path(exists=True, dir_okay=False, path_type=Path)
out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="The folder of docker-compose.yml, which gets .env and howl-server/; by default this one.",
)


def _host(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """Accept a DNS name or an IP address and nothing else; an option given several times is checked value by value."""
    if isinstance(value, tuple):
        return tuple(_host(_, __, each) for each in value)
    if value is None or _is_address(value) or HOST.fullmatch(value):
        return value and value.lower()
    raise click.BadParameter(f"{value!r} is no host: write a name such as my.server or an IP address, without port.")


def _address(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None or _is_address(value):
        return value
    raise click.BadParameter(f"{value!r} is no IP address.")


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


@click.group(invoke_without_command=True)
@click.option("--host", callback=_host, metavar="NAME", help="The address that workers reach this server at.")
@click.option(
    "--also", callback=_host, multiple=True, metavar="NAME", help="Another name or address of it; repeatable."
)
@click.option("--publish", callback=_address, metavar="IP", help="Where Redis and NATS listen; by default everywhere.")
@click.option("--cert", type=path_of_a_file, metavar="FILE", help="A certificate to use, with its chain (PEM).")
@click.option("--key", type=path_of_a_file, metavar="FILE", help="Its key (PEM).")
@click.option("--ca", type=path_of_a_file, metavar="FILE", help="Who signed it, if no public authority did (PEM).")
@out
@click.pass_context
def init(
    context: click.Context,
    host: str | None,
    also: tuple[str, ...],
    publish: str | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    out: Path,
) -> None:
    """Make what a real server needs: secrets, certificates, configuration.

    It writes .env and howl-server/, which docker-compose.yml mounts: a private certificate authority and a certificate
    for Redis and NATS (or the one given), random passwords, Redis's users, NATS's permissions, PostgreSQL's roles.
    Run again, it keeps what is there, adds what is missing, and renews its certificate when that is about to expire.

    \b
    Examples:
        howl init --host my.server
        howl init --host my.server --cert fullchain.pem --key privkey.pem
        howl init join | gh secret set HOWL_JOIN
    """
    if context.invoked_subcommand is not None:
        return
    folder = Folder(out)
    state = _wanted(folder, host, also, publish)
    given = None
    if cert is not None and key is not None:
        given = read_given(cert, key, ca, state.host)
        state.given, state.public = True, given[1] is None
    elif cert or key or ca:
        raise click.UsageError("--cert and --key go together; --ca goes with them.")
    build(folder, state, given)
    _say(folder, state)


def _wanted(folder: Folder, host: str | None, also: tuple[str, ...], publish: str | None) -> State:
    state = folder.state()
    if state is None:
        if host is None:
            raise click.UsageError("Say what address workers reach this server at: --host my.server.")
        state = State(host)
    state.host = host or state.host
    state.also = list(also) or state.also
    state.publish = publish or state.publish
    return state


def _say(folder: Folder, state: State) -> None:
    for path, done in folder.report.items():
        click.echo(f"{done:<8}{path.relative_to(folder.out.absolute())}")
    if set(folder.report.values()) == {"kept"}:
        click.echo("\nNothing had to be changed.")
        return
    if "changed" in folder.report.values():
        click.echo("\nWhere servers run already: `docker compose up --detach && docker compose restart redis nats`.")
    click.echo(f"\nNext: let workers in to ports 6379 and 4222 of {state.host} (TLS), then\n")
    click.echo("  docker compose up --detach --build")
    click.echo("  howl init join | gh secret set HOWL_JOIN")


@init.command()
@click.argument("name")
@out
def rotate(name: str, out: Path) -> None:
    """Replace one credential while the servers run; the old one is refused from then on.

    NAME is worker (burst machines), another worker credential that `howl init join` made, permanent, server, flower,
    howl_server, howl_reader, health or operator.

    \b
    Examples:
        howl init rotate worker
    """
    for sentence in rotated(Folder(out), name):
        click.echo(sentence)


@init.command()
@click.option("--queues", type=NAMES, default=(), metavar="A,B", help="Only these; by default all.")
@click.option("--name", metavar="NAME", help="The credential's; by default worker, or one made of its queues.")
@out
def join(queues: tuple[str, ...], name: str | None, out: Path) -> None:
    """Print the one string that lets a worker in: HOWL_JOIN.

    It holds the addresses, the authority's certificate and a worker credential: whoever has it can take tasks. With
    --queues, the credential is one of its own, good for these queues alone, made when it is first asked for.

    \b
    Examples:
        howl init join | gh secret set HOWL_JOIN
        howl init join --queues web,screens --name screens
    """
    folder = Folder(out)
    state = folder.existing()
    name, is_new = grant(state, queues, name)
    if is_new:
        build(folder, state)
        for sentence in tell(folder, state, state):
            click.echo(sentence, err=True)
    click.echo(join_string(folder, state, name))
    if sys.stdout.isatty():
        again = "".join([" --queues " + ",".join(queues) if queues else "", f" --name {name}" if queues else ""])
        click.echo(f"\nIt is a secret. For GitHub: howl init join{again} | gh secret set HOWL_JOIN", err=True)
