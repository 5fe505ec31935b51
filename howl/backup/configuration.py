"""The server's configuration in an archive: the folder that `howl init` made, file by file."""

import os
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from howl.backup.archive import Progress, Writer, members
from howl.backup.manifest import Configuration, ConfigurationFile, ConfigurationFolder
from howl.errors import BackupFailed, RestoreRefused

#: Where `howl init` leaves it unless told otherwise.
DEFAULT_FOLDER = Path("howl-server")
#: A configuration is a handful of small files: more is somebody's home folder, named by mistake.
MOST_FILES, MOST_BYTES = 1000, 16 << 20


def save(folder: Path, writer: Writer, progress: Progress) -> Configuration:
    """Write the folder's files, and as files those that links lead to; raises BackupFailed."""
    try:
        paths = _paths(folder)
        folders = [_described_folder(folder, path) for path in (folder, *paths) if path.is_dir()]
        files = [_described_file(folder, path) for path in paths if path.is_file()]
        contents = [path.read_bytes() for path in paths if path.is_file()]
    except ValidationError:
        raise BackupFailed(f"A name in {folder} cannot be kept in a backup: use letters that can be printed.") from None
    except OSError as error:
        raise BackupFailed(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    for file, content in zip(files, contents, strict=True):
        with writer.member(file.member) as member:
            member.write(content)
    progress("configuration", len(files), len(files))
    return Configuration(folders=folders, files=files)


def _paths(folder: Path) -> list[Path]:
    """Everything in it, a folder before what it holds."""
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


def _described_file(top: Path, path: Path) -> ConfigurationFile:
    state, name = path.stat(), path.relative_to(top).as_posix()
    mode, member = state.st_mode & 0o777, f"configuration/{name}"
    return ConfigurationFile(path=name, mode=mode, uid=state.st_uid, gid=state.st_gid, member=member)


def require_room(folder: Path, archive: Path, configuration: Configuration) -> bool:
    """Whether the folder is to be made; one that holds these files already is as good.

    Raises RestoreRefused when it holds others.
    """
    if not folder.exists():
        return True
    by_member = {file.member: folder / file.path for file in configuration.files}
    for name, content in members(archive, by_member):
        there = by_member[name]
        if not there.is_file() or there.read_bytes() != content.read():
            raise RestoreRefused(
                f"{folder} is another configuration than the one in the backup ({there.name} differs): move it away, "
                "or name a new folder with --config."
            )
    return False


def load(folder: Path, archive: Path, configuration: Configuration, progress: Progress) -> None:
    """Make the folder, whole or not at all; raises BackupFailed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _fill(workshop, archive, configuration, progress)
            workshop.rename(folder)
        except BaseException:
            shutil.rmtree(workshop)
            raise
    except OSError as error:
        raise BackupFailed(f"{folder} cannot be made: {error.strerror or error}.") from error


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
    """To whom it belonged: a server in a container reads its file by an account of its own."""
    if os.geteuid() == 0:
        os.chown(path, owned.uid, owned.gid)
    path.chmod(owned.mode)
