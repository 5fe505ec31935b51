"""The archive of a backup: a gzipped tar whose last member, the manifest, describes every other one."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from howl.backup.manifest import Manifest, Member, newer_than_known
from howl.errors import ArchiveRefused, BackupFailed

MANIFEST = "manifest.json"
#: Most bytes of a manifest: larger than any manifest, smaller than any memory.
MANIFEST_LIMIT = 256 << 20
#: Most bytes of a member kept in memory before it goes to a file, and bytes read at once.
IN_MEMORY, AT_ONCE = 8 << 20, 1 << 20
#: gzip's level: level 9 takes twice as long for one percent less.
LEVEL = 6

DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


class Progress(Protocol):
    """A callback for the progress of a step, in rows, objects or bytes; `total` is None while unknown."""

    def __call__(self, step: str, done: int, total: int | None) -> None: ...


class Writer:
    """A writer of an archive's members."""

    def __init__(self, tar: tarfile.TarFile, folder: Path) -> None:
        self._tar = tar
        self._folder = folder
        self.members: dict[str, Member] = {}

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a file to write; its content at the end of the block becomes the member."""
        with self.scratch() as file:
            yield file
            self.add(name, file)

    def scratch(self) -> IO[bytes]:
        """Open a temporary file that may or may not become a member; closing it removes it."""
        return tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(self._folder))

    def add(self, name: str, file: IO[bytes]) -> None:
        """Make a scratch file's whole content a member."""
        file.seek(0)
        self.members[name] = _measure(file)
        self._add(name, file, self.members[name].size)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, the last member."""
        document = manifest.model_dump_json(indent=1).encode()
        self._add(MANIFEST, io.BytesIO(document), len(document))

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o600
        file.seek(0)
        self._tar.addfile(entry, file)


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write an archive that only its owner may read, whole or not at all; raises BackupFailed."""
    if path.exists():
        raise BackupFailed(f"{path} exists already: name another file, so that the backup you have stays.")
    try:
        with _replacing_at_the_end(path) as file, gzip.GzipFile("", "wb", LEVEL, file) as packed:
            with tarfile.open(fileobj=packed, mode="w") as tar:
                yield Writer(tar, path.parent)
    except OSError as error:
        raise BackupFailed(f"{path} cannot be written: {error.strerror or error}. Nothing is left of it.") from error


@contextmanager
def _replacing_at_the_end(path: Path) -> Iterator[IO[bytes]]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def verify(path: Path, progress: Progress) -> Manifest:
    """Read a whole archive, change nothing, and return its manifest; raises ArchiveRefused."""
    found: dict[str, Member] = {}
    document = b""
    with refusing_damage(path):
        for name, file in _entries(path):
            if MANIFEST in found or name in found:
                raise tarfile.TarError("a member stands where none should")
            if name == MANIFEST:
                document = file.read(MANIFEST_LIMIT)
            found[name] = _measure(file)
            progress("checking the archive", len(found), None)
    manifest = _manifest(path, document)
    found.pop(MANIFEST, None)
    if found != manifest.members:
        raise _refused(path, "its members are not what its manifest says")
    return manifest


def members(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the wanted members of a verified archive, each to be read before the next; use in `refusing_damage`."""
    left = set(wanted)
    entries = _entries(path) if left else iter(())
    for name, file in entries:
        if name in left:
            yield name, file
            left.discard(name)


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Raise ArchiveRefused for any error that reading a damaged or absent archive may raise."""
    try:
        yield
    except DAMAGED as error:
        raise _refused(path, str(error) or type(error).__name__) from error
    except OSError as error:
        raise ArchiveRefused(f"{path} cannot be read: {error.strerror or error}.") from error


def _entries(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with gzip.open(path) as packed:
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.isreg() else None
                if file is None:
                    raise tarfile.TarError("it holds something that is no file")
                yield entry.name, file
        while packed.read(AT_ONCE):  # to the end, where gzip's own checksum is
            pass


def _measure(file: IO[bytes]) -> Member:
    digest, size = hashlib.sha256(), 0
    while block := file.read(AT_ONCE):
        digest.update(block)
        size += len(block)
    return Member(size=size, sha256=digest.hexdigest())


def _manifest(path: Path, document: bytes) -> Manifest:
    try:
        if newer_than_known(json.loads(document)):
            raise ArchiveRefused(f"{path} was made by a newer HOWL: update this one, then restore.")
        return Manifest.model_validate_json(document)
    except (ValidationError, RecursionError, ValueError) as error:
        raise _refused(path, _why(error)) from None


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        return f"its manifest is wrong at {place}: {problem['msg']}" if place else f"in its manifest, {problem['msg']}"
    return "it has no manifest"


def _refused(path: Path, reason: str) -> ArchiveRefused:
    return ArchiveRefused(
        f"{path} is no backup that `howl backup` made, or is damaged ({reason}): nothing was restored. Use another one."
    )
