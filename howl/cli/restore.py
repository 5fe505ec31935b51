"""`howl restore`: put a backup back into empty servers."""

from pathlib import Path
from typing import Any

import click

from howl.backup.manifest import Manifest
from howl.backup.restore import restore as restore_all
from howl.backup.restore import restore_configuration
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
    help="Where the configuration goes; by default ./howl-server.",
)
@click.option("--only-configuration", is_flag=True, help="Restore nothing else: new servers need it to start.")
@as_json
def restore(file: Path, config: Path | None, only_configuration: bool, as_json: bool) -> None:
    """Put a backup back into empty servers.

    The archive is checked whole before anything is changed. A database with rows in it, and buckets or a configuration
    with other content, are refused: nothing is ever written over. After an interruption, run it again. Submitted tasks
    that had not ended when the backup was made are queued, and run again once `howl server` runs.

    \b
    Examples:
        howl restore howl-2026-11-22.tar.gz --only-configuration
        howl restore howl-2026-11-22.tar.gz
    """
    silence_asyncio()
    with undoing_when_told_to_stop(), progress() as told:
        if only_configuration:
            facts = _facts(restore_configuration(file, config, told))
        else:
            restored = restore_all(load_settings(), file, config, told)
            facts = _facts(restored.manifest) | {"queued_again": restored.queued_again}
    emit(facts, as_json, read={"made_at": formats.stamp})


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {"made_at": manifest.made_at, "made_by": f"howl {manifest.howl}", **manifest.counts()}
