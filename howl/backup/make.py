"""`howl backup`: one archive of the record, the object store and the configuration."""

from datetime import UTC, datetime
from pathlib import Path

from howl import __version__
from howl.backup import archive, configuration, objects, record
from howl.backup.archive import Progress
from howl.backup.manifest import Manifest
from howl.config import Settings
from howl.errors import BackupFailed


def backup(settings: Settings, path: Path, folder: Path | None, progress: Progress) -> Manifest:
    """Make the archive at `path`, whole or not at all; return its manifest.

    `folder` is the configuration's; None means the default one, if it exists. Raises NotConfigured, DatabaseUnavailable
    or BackupFailed.
    """
    if folder is not None and not folder.is_dir():
        raise BackupFailed(f"{folder} is no folder: name the one that `howl init` made.")
    kept = folder or configuration.DEFAULT_FOLDER
    with archive.writing(path) as writer:
        # Rows first: the files that they refer to are older than the rows.
        rows = record.save(settings.database(), writer, progress)
        files = objects.save(settings, writer, progress)
        manifest = Manifest(
            howl=__version__,
            made_at=datetime.now(UTC),
            record=rows,
            objects=files,
            configuration=configuration.save(kept, writer, progress) if kept.is_dir() else None,
            members=writer.members,
        )
        writer.finish(manifest)
    return manifest
