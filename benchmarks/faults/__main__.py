"""The program that breaks things, counts what became of the tasks, and reports the promises that were not kept.

The short run takes a minute or two; `--full` takes as long as the project's own figures require.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.faults.ground import Account, Ground
from benchmarks.faults.scenarios import SCENARIOS
from howl.config import load_settings
from howl.embedded.isolation import isolate
from howl.embedded.stack import Stack
from howl.server import migrate

COLUMNS = ("tasks", "faults", "lost", "twice", "started_again", "running_at_faults", "stranded", "stale", "dead",
           "unseen", "wrong", "orphans", "seconds")  # fmt: skip


@click.command()
@click.option("--full", is_flag=True, help="In full measure: about half an hour.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="These alone.")
@click.option("--lease", default=2.0, show_default=True, help="Seconds a lease lasts.")
@click.option("--keep", is_flag=True, help="Keep the folder with all logs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(full: bool, only: tuple[str, ...], lease: float, keep: bool, as_json: bool) -> None:
    """Break workers, connections and servers under load."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-faults-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    accounts = {}
    try:
        with Stack(home / "state") as stack:
            for name in only or SCENARIOS:
                accounts[name] = _try(stack, home, name, lease, full=full)
                click.echo(f"{name}: {_verdict(name, accounts[name])}", err=True)
    finally:
        if keep:
            click.echo(f"All logs are in {home}.", err=True)
        else:
            shutil.rmtree(home)
    _show(accounts, as_json=as_json)
    sys.exit(any(SCENARIOS[name].broken_promises(account) for name, account in accounts.items()))


def _try(stack: Stack, home: Path, name: str, lease: float, *, full: bool) -> Account:
    space = name.replace("-", "_")
    with psycopg.connect(stack.urls.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {space}".encode())
    settings = load_settings(
        redis_url=stack.urls.redis_url,
        nats_url=stack.urls.nats_url,
        database_url=f"{stack.urls.database_url.rpartition('/')[0]}/{space}",
        key_prefix=f"{space}:",
        subject_prefix=space,
        home=stack.home,
        lease=lease,
        push_again_after=3.0,
    )
    migrate.upgrade(settings.database())
    folder = home / name
    folder.mkdir()
    scenario = SCENARIOS[name]
    with Ground(stack, settings, folder) as ground:
        return scenario.run(ground, **(scenario.full if full else scenario.short))


def _verdict(name: str, account: Account) -> str:
    broken = SCENARIOS[name].broken_promises(account)
    return "kept" if not broken else ", ".join(f"{count} {what}" for what, count in broken.items())


def _show(accounts: dict[str, Account], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({name: asdict(account) for name, account in accounts.items()}, indent=2))
        return
    table = Table("fault", *(column.replace("_", " ") for column in COLUMNS), "promise")
    for name, account in accounts.items():
        table.add_row(name, *(f"{getattr(account, column):,}" for column in COLUMNS), _verdict(name, account))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
