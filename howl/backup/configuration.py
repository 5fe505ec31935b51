"""Backup and restore of the server's configuration: the folder that `howl init` made, and the `.env` beside it."""

import os
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from howl.backup.archive import Progress, Writer, members
from howl.backup.manifest import Configuration, ConfigurationFile, ConfigurationFolder
from howl.errors import BackupFailed, RestoreRefused

#: The configuration's folder, unless `howl init` was given another.
DEFAULT_FOLDER = Path("howl-server")
#: The file beside it, which compose and the commands read.
ENVIRONMENT = ".env"
#: Most entries and bytes of a configuration, a handful of small files: more is a home folder, named by mistake.
MOST_FILES, MOST_BYTES = 1000, 16 << 20


def save(folder: Path, writer: Writer, progress: Progress) -> Configuration:
    """Write the folder's files, with links as the files they lead to; raises BackupFailed."""
    try:
        described, contents = _read(folder)
    except ValidationError:
        raise BackupFailed(f"A name in {folder} cannot be kept in a backup: use letters that can be printed.") from None
    except OSError as error:
        raise BackupFailed(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    for member, content in contents.items():
        with writer.member(member) as file:
            file.write(content)
    progress("configuration", len(contents), len(contents))
    return described


def _read(folder: Path) -> tuple[Configuration, dict[str, bytes]]:
    """Return the configuration's description, and the files' contents by member."""
    paths, beside = _paths(folder), _beside(folder)
    sources = {f"configuration/{path.relative_to(folder).as_posix()}": path for path in paths if path.is_file()}
    described = Configuration(
        folders=[_described_folder(folder, path) for path in (folder, *paths) if path.is_dir()],
        files=[_described(path, member.partition("/")[2], member) for member, path in sources.items()],
        environment=_described(beside, ENVIRONMENT, "environment") if beside.is_file() else None,
    )
    if described.environment:
        sources["environment"] = beside
    return described, {member: path.read_bytes() for member, path in sources.items()}


def _beside(folder: Path) -> Path:
    return folder.absolute().parent / ENVIRONMENT


def _paths(folder: Path) -> list[Path]:
    """List everything in the folder, a folder before what it holds."""
    paths: list[Path] = []
    size = 0
    for path in folder.rglob("*"):
        paths.append(path)
        size += path.stat().st_size if path.is_file() else 0
        if len(paths) > MOST_FILES or size > MOST_BYTES:
            raise BackupFailed(f"{folder} holds too much for a configuration: is it the folder that `howl init` made?")
    return sorted(paths)


def _described_folder(top: Path, path: Path) -> ConfigurationFolder:
    state = path.stat()
    name = path.relative_to(top).as_posix()
    return ConfigurationFolder(path=name, mode=state.st_mode & 0o777, uid=state.st_uid, gid=state.st_gid)


def _described(path: Path, name: str, member: str) -> ConfigurationFile:
    state = path.stat()
    return ConfigurationFile(path=name, mode=state.st_mode & 0o777, uid=state.st_uid, gid=state.st_gid, member=member)


def require_room(folder: Path, archive: Path, configuration: Configuration) -> None:
    """Raise RestoreRefused if the folder or `.env` exists, unless its content is the backup's."""
    targets = {file.member: folder / file.path for file in configuration.files if folder.exists()}
    if configuration.environment and _beside(folder).exists():
        targets[configuration.environment.member] = _beside(folder)
    for name, content in members(archive, targets):
        there = targets[name]
        if not there.is_file() or there.read_bytes() != content.read():
            raise RestoreRefused(
                f"{there} is there already and says something else than the backup: move it away, or name a new folder "
                "with --config."
            )


def load(folder: Path, archive: Path, configuration: Configuration, progress: Progress) -> None:
    """Make the folder and `.env` if they do not exist, each whole or not at all; raises BackupFailed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            _make(folder, archive, configuration, progress)
        if configuration.environment and not _beside(folder).exists():
            _make_environment(_beside(folder), archive, configuration.environment)
    except OSError as error:
        raise BackupFailed(f"{error.filename or folder} cannot be made: {error.strerror or error}.") from error


def _make_environment(path: Path, archive: Path, file: ConfigurationFile) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent) as workshop:
        made = Path(workshop) / path.name
        for _, content in members(archive, {file.member}):
            made.touch(mode=0o600)
            made.write_bytes(content.read())
            _hand_over(made, file)
            made.rename(path)


def _make(folder: Path, archive: Path, configuration: Configuration, progress: Progress) -> None:
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _fill(workshop, archive, configuration, progress)
        workshop.rename(folder)
    except BaseException:
        shutil.rmtree(workshop)
        raise


def _fill(workshop: Path, archive: Path, configuration: Configuration, progress: Progress) -> None:
    by_member = {file.member: file for file in configuration.files}
    for folder in configuration.folders:
        (workshop / folder.path).mkdir(mode=0o700, exist_ok=True)
    for number, (name, content) in enumerate(members(archive, by_member), start=1):
        path = workshop / by_member[name].path
        path.touch(mode=0o600)
        path.write_bytes(content.read())
        progress("configuration", number, len(by_member))
    owned: list[ConfigurationFile | ConfigurationFolder] = [*configuration.files, *reversed(configuration.folders)]
    for part in owned:
        _hand_over(workshop / part.path, part)


def _hand_over(path: Path, owned: ConfigurationFile | ConfigurationFolder) -> None:
    """Restore owner (as root only) and mode: a server in a container reads its files under its own account."""
    if os.geteuid() == 0:
        os.chown(path, owned.uid, owned.gid)
    path.chmod(owned.mode)
