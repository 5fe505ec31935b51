"""`howl burst stop`."""

import click

from howl.bursts.stop import stop as stop_
from howl.cli.ui.options import as_json
from howl.cli.ui.output import emit
from howl.config import load_settings


@click.command()
@click.argument("burst_id", metavar="ID")
@as_json
def stop(burst_id: str, as_json: bool) -> None:
    """End a burst before its time.

    On GitHub its run is cancelled, and within seconds its workers put back what they run; on this machine they are
    asked to end what they run first. No task is lost. The first characters of an id will do, six or more.

    \b
    Examples:
        howl burst stop 1f0c9a
        howl burst stop 1f0c9a --json
    """
    ended = stop_(burst_id, load_settings())
    if as_json:
        emit(ended, as_json)
    else:
        click.echo(f"Burst {ended['burst_id']}: {ended['status']}.")
