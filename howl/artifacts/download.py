"""Listing and downloading the files that tasks produced."""

import asyncio
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.artifacts import store
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import Connection
from howl.errors import ArtifactFailed, InvalidRequest, UnknownArtifact
from howl.models import Artifact
from howl.outcomes import is_plain_id, name_fault, path_fault

Row = dict[str, Any]

#: Most rows of a list, and bytes copied at once.
LIMIT, CHUNK = 1000, 1 << 20

#: Folder in the working directory in which `own_folder` makes folders.
FOLDER = Path("howl-artifacts")

SUMMARY = (
    Artifact.artifact_id, Artifact.task_id, Artifact.name, Artifact.media_type, Artifact.size, Artifact.sha256,
    Artifact.status, Artifact.worker_id, Artifact.attempt, Artifact.created_at, Artifact.expires_at,
)  # fmt: skip


def list_artifacts(session: Session, *, task_id: str | None = None, limit: int = 50) -> list[Row]:
    """Return files, newest first, or those of one task by name; `size` is in bytes. Raises InvalidRequest.

    `status` is `arriving` until the server has checked for the content, then `kept`, or `missing` if it was not there.
    """
    if not 1 <= limit <= LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {LIMIT}.")
    question = select(*SUMMARY).limit(limit)
    if task_id is None:
        question = question.order_by(Artifact.created_at.desc(), Artifact.name)
    else:
        question = question.where(Artifact.task_id == task_id).order_by(Artifact.name)
    return [dict(row) for row in session.execute(question).mappings()]


def find(session: Session, task_id: str, name: str) -> Row:
    """Return the file that a task produced under a name; raises UnknownArtifact, naming those that exist."""
    question = select(*SUMMARY, Artifact.location).where(Artifact.task_id == task_id)
    if not path_fault(name) and (found := session.execute(question.where(Artifact.name == name)).mappings().first()):
        return dict(found)
    names = [row["name"] for row in list_artifacts(session, task_id=task_id, limit=20)]
    told = f"it left {', '.join(map(repr, names))}" if names else "it left none"
    raise UnknownArtifact(f"Task {task_id} left no file {name[:255]!r}: {told}.")


def own_folder(task_id: str) -> Path:
    """Return the folder `howl-artifacts/<task id>` here, made if missing; the SHA-256 of an unusual id replaces it.

    Raises ArtifactFailed if it cannot be made, or if something else is in its place: a link, or a folder that others
    may write to.
    """
    name = task_id if is_plain_id(task_id) else hashlib.sha256(task_id.encode()).hexdigest()[:32]
    for folder in (FOLDER, FOLDER / name):
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o755)
            about = folder.lstat()
        except OSError as error:
            raise ArtifactFailed(f"{folder} cannot be made ({error.strerror}): choose a folder with --to.") from error
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise ArtifactFailed(f"{folder} is no folder that you alone may write to: choose another with --to.")
    return FOLDER / name


def save(settings: Settings, row: Row, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a file that `find` returned into a folder, under its own name, and return its path.

    A first character that programs give a meaning (`.env`, `-rf`) becomes `_`. The file appears whole and checked, or
    not at all. Raises ArtifactFailed, also where a file of its name exists and `overwrite` is not set, UnknownArtifact
    or NotConfigured.
    """
    if fault := path_fault(row["name"]):
        raise ArtifactFailed(f"The file's name {row['name']!r} {fault}: it cannot be saved under it.")
    path = folder / _plain(row["name"])
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".howl-", delete=False) as file, _gone_at_the_end(file):
            fetch(settings, row, file)
            file.flush()
            _put_in_place(Path(file.name), path, overwrite=overwrite)
    except OSError as error:
        raise ArtifactFailed(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _plain(name: str) -> str:
    """Return the name, or a similar plain one: other names are refused now, but older rows may have them."""
    if not name_fault(name):
        return name
    return re.sub(r"[.\s]+$", "", re.sub(r"^[.\s-]", "_", name))


@contextmanager
def _gone_at_the_end(file: Any) -> Iterator[None]:
    try:
        yield
    finally:
        Path(file.name).unlink(missing_ok=True)


def _put_in_place(made: Path, path: Path, *, overwrite: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    made.chmod(0o666 & ~mask)  # like any file that this person makes
    if overwrite:
        made.replace(path)
        return
    try:
        os.link(made, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        raise _exists(path) from None


def _exists(path: Path) -> ArtifactFailed:
    return ArtifactFailed(f"{path} is there already: choose another folder, or overwrite it with --force.")


def read(settings: Settings, row: Row, into: IO[bytes]) -> None:
    """Write a file that `find` returned to `into`, once all of it has arrived and is checked; raises as `save`."""
    with tempfile.TemporaryFile() as file:
        fetch(settings, row, file)
        file.seek(0)
        while piece := file.read(CHUNK):
            into.write(piece)


def fetch(settings: Settings, row: Row, into: IO[bytes]) -> None:
    """Write the content as it arrives; raises ArtifactFailed at its end if it does not match the record."""
    settings.nats()
    asyncio.run(_fetch(settings, row, into))


async def _fetch(settings: Settings, row: Row, into: IO[bytes]) -> None:
    client = Connection()
    try:
        await client.open(settings, "howl artifacts")
        try:
            await _copy(client.jetstream(), row, into)
        finally:
            await client.close()
    except NotFoundError:
        raise _gone(row) from None
    except (NatsError, ConnectionError, TimeoutError) as error:  # but no other OSError: a full disk is not NATS's fault
        why = reason(client.complaint or error)
        raise ArtifactFailed(f"The file {row['name']!r} could not be fetched from NATS: {why}. Try again.") from error


async def _copy(stream: JetStreamContext, row: Row, into: IO[bytes]) -> None:
    bucket, _, name = row["location"].rpartition("/")
    info = await store.describe(stream, bucket, name)
    if info is None:
        raise _gone(row)
    digest, size = hashlib.sha256(), 0
    async for piece in store.pieces(stream, info):
        size += len(piece)
        if size > row["size"]:
            break
        digest.update(piece)
        into.write(piece)
    if size != row["size"] or digest.hexdigest() != row["sha256"]:
        raise ArtifactFailed(
            f"The file {row['name']!r} is damaged: its content at NATS is not what its worker said. Run the task again."
        )


def _gone(row: Row) -> UnknownArtifact:
    return UnknownArtifact(
        f"The file {row['name']!r} of task {row['task_id']} is recorded, and its content is no longer at NATS: "
        "run the task again."
    )
