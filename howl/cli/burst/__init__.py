"""`howl burst`: workers for a limited time. One file per command: a run that asks for leave has no database code."""

import click

from howl.cli import CommandFiles

COMMANDS = {
    "start": "Start a burst of workers.",
    "list": "List bursts, newest first.",
    "watch": "Wait until a burst's workers have registered.",
    "stop": "End a burst before its time.",
    "budget": "Show this month's minutes: used, planned, left.",
    "leave": "Ask the server whether this run may work.",
}


@click.group(cls=CommandFiles, package="howl.cli.burst", told=COMMANDS)
def burst() -> None:
    """Start workers for a limited time.

    \b
    Examples:
        howl burst start --local --workers 2
        howl burst start --workers 3 --runtime 30m
        howl burst list
    """
