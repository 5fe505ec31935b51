"""`howl burst budget`."""

from typing import Any

import click

from howl.bursts import budget as decided
from howl.cli.ui.options import as_json
from howl.cli.ui.output import emit
from howl.config import load_settings
from howl.connections.postgres import session


@click.command()
@as_json
def budget(as_json: bool) -> None:
    """Show this month's minutes: used, planned, left.

    They are those of workers on GitHub's runners, each job's rounded up, in this calendar month (UTC).

    \b
    Examples:
        howl burst budget
        howl burst budget --json
    """
    settings = load_settings()
    with session(settings.database()) as opened:
        sums = decided.look(opened, settings)
    if as_json:
        emit(sums, as_json)
    else:
        click.echo(_sentence(sums))


def _sentence(sums: dict[str, Any]) -> str:
    return (
        f"{sums['month']}: {sums['budget']:,} minutes, {sums['used']:,g} used, {sums['planned']:,g} planned, "
        f"{sums['left']:,g} left; {sums['workers']} of {sums['concurrency']} workers under way."
    )
