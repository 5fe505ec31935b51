"""`howl restore`: an archive, restored into empty servers."""

from dataclasses import dataclass
from pathlib import Path

from howl.backup import archive, configuration, objects, record
from howl.backup.archive import Progress
from howl.backup.manifest import Manifest
from howl.config import Settings
from howl.errors import RestoreRefused


@dataclass(frozen=True)
class Restored:
    """The result of a restore: the archive's manifest, and the tasks that are queued again."""

    manifest: Manifest
    #: Number of submitted tasks that ran when the backup was made, and are queued now.
    queued_again: int


def restore(settings: Settings, path: Path, folder: Path | None, progress: Progress) -> Restored:
    """Restore everything; refuse before anything is changed. May be repeated after an interruption.

    The database comes last and in one transaction: once it is restored, so is the rest. Raises ArchiveRefused,
    RestoreRefused, NotConfigured, DatabaseUnavailable or BackupFailed.
    """
    manifest = archive.verify(path, progress)
    with archive.refusing_damage(path):
        record.require_empty(settings.database(), manifest.record)
        objects.require_empty(settings, manifest.objects)
        _restore_configuration(path, manifest, folder, progress)
        objects.load(settings, path, manifest.objects, progress)
        queued_again = record.load(settings.database(), path, manifest.record, progress)
    return Restored(manifest, queued_again)


def restore_configuration(path: Path, folder: Path | None, progress: Progress) -> Manifest:
    """Restore only the configuration: new servers need it before anything else can be restored into them.

    Raises ArchiveRefused, RestoreRefused or BackupFailed.
    """
    manifest = archive.verify(path, progress)
    if manifest.configuration is None:
        raise RestoreRefused(f"{path} holds no configuration: `howl backup --config FOLDER` keeps it.")
    with archive.refusing_damage(path):
        _restore_configuration(path, manifest, folder, progress)
    return manifest


def _restore_configuration(path: Path, manifest: Manifest, folder: Path | None, progress: Progress) -> None:
    kept = folder or configuration.DEFAULT_FOLDER
    if manifest.configuration:
        configuration.require_room(kept, path, manifest.configuration)
        configuration.load(kept, path, manifest.configuration, progress)
