"""`howl doctor`: check that everything is present, healthy and configured correctly."""

import json
import time
from dataclasses import asdict

import click

from howl.cli.ui import formats
from howl.cli.ui.options import as_json, silence_asyncio
from howl.config import load_settings
from howl.doctor.examine import run
from howl.doctor.finding import Finding, Verdict
from howl.errors import SettingsError

MARKS = {Verdict.OK: ("✓", "green"), Verdict.WARNING: ("!", "yellow"), Verdict.FAILURE: ("✗", "red")}


@click.command()
@click.option("--as", "role", type=click.Choice(("server", "worker")), default="server", show_default=True,
              help="What this machine is to be.")  # fmt: skip
@as_json
@click.pass_context
def doctor(context: click.Context, role: str, as_json: bool) -> None:
    """Check what this machine needs, and say what to do.

    It looks at each server by the settings that every other command uses: name, port, certificate, login, rights, round
    trip, clock, JetStream, migrations, versions. A worker is asked what a burst machine needs (HOWL_JOIN), and whether
    it is refused what it must not have. All takes less than five seconds, and changes nothing. Status 1: something
    failed.

    \b
    Examples:
        howl doctor
        howl doctor --as worker
        HOWL_JOIN=howl-join.1… howl doctor --as worker --json
    """
    silence_asyncio()
    began = time.monotonic()
    findings = _findings(role)
    failed = any(finding.verdict is Verdict.FAILURE for finding in findings)
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        # Not howl.cli.ui.output, which needs packages that a burst machine does not install.
        answer = {"well": not failed, "seconds": seconds, "findings": [asdict(each) for each in findings]}
        click.echo(json.dumps(answer, indent=2))
    else:
        _print(findings)
    context.exit(1 if failed else 0)


def _findings(role: str) -> list[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        said, _, advice = error.message.partition(": ")
        return [Finding(Verdict.FAILURE, said, advice, check="settings")]
    return run(settings, as_worker=role == "worker")


def _print(findings: list[Finding]) -> None:
    """Print a line per finding; control characters in a server's text must not reach the terminal."""
    servers, checks = (max(len(getattr(each, name)) for each in findings) for name in ("server", "check"))
    for each in findings:
        mark, colour = MARKS[each.verdict]
        told = formats.visible(each.said + (f": {each.advice}" if each.advice else ""))
        head = click.style(f"{mark} {each.verdict:<8}", fg=colour)
        click.echo(f"{head} {each.server:<{servers}}  {each.check:<{checks}}  {told}")
