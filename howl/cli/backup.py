"""`howl backup`: write all persistent data to one file."""

import shutil
import subprocess
from pathlib import Path

import click

from howl.backup import make
from howl.cli.ui import formats
from howl.cli.ui.long_commands import progress, undoing_when_told_to_stop
from howl.cli.ui.options import as_json, silence_asyncio
from howl.cli.ui.output import emit
from howl.config import load_settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The configuration that `howl init` made; by default ./howl-server, if it is there.",
)
@as_json
def backup(file: Path, config: Path | None, as_json: bool) -> None:
    """Write all that stays into one archive.

    It holds PostgreSQL's tables as they were at one moment, the files that tasks left behind, and the server's
    configuration: passwords and keys, so keep it as you keep those. Nothing is stopped for it, and Redis is not part of
    it: what waits there is in PostgreSQL too. A backup that does not come to its end leaves no file.

    \b
    Examples:
        howl backup howl-$(date +%F).tar.gz
        howl backup --config /srv/howl-server /mnt/backups/howl.tar.gz --json
    """
    silence_asyncio()
    with undoing_when_told_to_stop(), progress() as told:
        manifest = make.backup(load_settings(), file, config, told)
    if _is_news_to_git(file):
        click.echo(
            formats.visible(f"Git does not ignore {file}, which holds passwords and keys: keep it elsewhere."), err=True
        )
    facts = {"file": str(file), "bytes": file.stat().st_size, "made_at": manifest.made_at, **manifest.counts()}
    emit(facts, as_json, read={"made_at": formats.stamp})


def _is_news_to_git(file: Path) -> bool:
    """Return whether the file is in a git checkout and not ignored, so that the next `git add` would take it."""
    git = shutil.which("git")
    if git is None:
        return False
    asked = [git, "-C", str(file.absolute().parent), "check-ignore", "--quiet", "--", file.name]
    try:
        return subprocess.run(asked, capture_output=True, timeout=10, check=False).returncode == 1
    except (OSError, subprocess.TimeoutExpired):
        return False
