"""The function that a task calls to leave a file behind: `artifact`."""

import io
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from celery import current_task

from howl.artifacts import media_types, store
from howl.config import Settings
from howl.errors import ArtifactFailed, ArtifactRefused
from howl.node_names import worker_id_of
from howl.outcomes import MEDIA_TYPE, ArtifactKept, name_fault
from howl.worker.task.uploads import Source, upload


def artifact(content: str | Path | bytes, name: str | None = None, media_type: str | None = None) -> dict[str, Any]:
    """Leave a file behind: the one at a path, or these bytes under a name. It outlives the worker, on the server.

    Returns its `name`, `media_type`, `size` in bytes and `sha256`, which can be part of the task's result. The file is
    listed with the task from then on, however the task ends. Without `name` it keeps its own; without `media_type` that
    is guessed. A name used again stands for the newer file, within a run and when the task is retried.

    Raises ArtifactRefused for a name, a kind or a size that is not allowed, and when the server has no room;
    ArtifactFailed when the file cannot be read, or NATS does not take it within two minutes without progress;
    NotConfigured without NATS. Works wherever a task runs: in prefork children, in threads, in solo workers.
    """
    request = _running()
    settings = _settings()
    named = _checked_name(content, name)
    source, size, head = _bytes(content) if isinstance(content, bytes) else _file(Path(content))
    kind = _checked_kind(media_type) if media_type is not None else media_types.guess(named, head)
    _count(request, settings, named, size)
    stored = upload(settings, named, _limited(source, named, settings.artifact_limit), size)
    kept = ArtifactKept(
        task_id=request.id,
        artifact_id=stored.name,
        name=named,
        media_type=kind,
        size=stored.size or 0,
        sha256=_hexadecimal(stored.digest),
        at=datetime.now(UTC).isoformat(),
        attempt=(request.retries or 0) + 1,
        worker_id=worker_id_of(request.hostname) if request.hostname else None,
    )
    current_task.app.backend.append(kept, str((request.properties or {}).get("delivery_tag") or ""))
    return {"name": kept.name, "media_type": kept.media_type, "size": kept.size, "sha256": kept.sha256}


def _running() -> Any:
    request = current_task.request if current_task else None
    if request is None or request.id is None or request.is_eager:
        raise ArtifactRefused("artifact() keeps the files of a task that a worker runs: call it within one.")
    return request


def _settings() -> Settings:
    # From the running task's application: importing howl.celery would make its own the current one, wherever a module
    # with tasks is imported.
    settings: Settings | None = current_task.app.conf.get("howl")
    if settings is None:
        raise ArtifactRefused("This worker's application is not HOWL's, whose workers alone keep files: use howl.app.")
    return settings


def _checked_name(content: str | Path | bytes, name: str | None) -> str:
    if name is None and isinstance(content, bytes):
        raise ArtifactRefused("Bytes need a name: artifact(data, 'screenshot.png').")
    given = Path(content).name if name is None and not isinstance(content, bytes) else name
    if not isinstance(given, str):
        raise ArtifactRefused("An artifact's name is a text.")
    if fault := name_fault(given):
        raise ArtifactRefused(f"The artifact's name {given[:100]!r} {fault}: give a plain file name.")
    return given


def _checked_kind(media_type: str) -> str:
    if not isinstance(media_type, str) or not MEDIA_TYPE.fullmatch(media_type):
        raise ArtifactRefused("A media type is of the form image/png, without parameters and in small letters.")
    return media_type


def _bytes(content: bytes) -> tuple[Source, int, bytes]:
    return lambda: io.BytesIO(content).read, len(content), content[: media_types.HEAD]


def _file(path: Path) -> tuple[Source, int, bytes]:
    """Return how to read the file, its size in bytes, and its beginning."""
    try:
        with _opened(path) as file:
            return partial(_reader, path), os.fstat(file.fileno()).st_size, file.read(media_types.HEAD)
    except OSError as error:
        raise _unreadable(path, error) from None


def _opened(path: Path) -> io.FileIO:
    # Non-blocking: opening a pipe would wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactRefused(f"{path} is no file: give a file's path, and pack a folder first.")
    return io.FileIO(descriptor)


def _reader(path: Path) -> Any:
    """Return a function that reads the file, which is closed with the last reference to it."""
    try:
        file = _opened(path)
    except OSError as error:
        raise _unreadable(path, error) from None

    def read(size: int) -> bytes:
        try:
            return file.read(size)
        except OSError as error:
            raise _unreadable(path, error) from None

    return read


def _unreadable(path: Path, error: OSError) -> ArtifactFailed:
    return ArtifactFailed(f"{path} cannot be read on this worker: {error.strerror}.")


@dataclass
class _Tally:
    """The files and bytes that a run has left so far."""

    files: int = 0
    bytes: int = 0


def _count(request: Any, settings: Settings, name: str, size: int) -> None:
    """Count a file, or raise ArtifactRefused if it would be too much, before anything of it is read."""
    if size > settings.artifact_limit:
        raise _too_large(name, f"{size:,} bytes", settings.artifact_limit)
    tally: _Tally = request.__dict__.setdefault("howl_artifacts", _Tally())
    if tally.files >= settings.artifact_run_count:
        raise ArtifactRefused(
            f"{name!r} is one file too many: a run may leave {settings.artifact_run_count:,} "
            "(HOWL_ARTIFACT_RUN_COUNT); pack them into one."
        )
    if tally.bytes + size > settings.artifact_run_limit:
        raise ArtifactRefused(
            f"{name!r} would make it {tally.bytes + size:,} bytes, and a run may leave "
            f"{settings.artifact_run_limit:,} (HOWL_ARTIFACT_RUN_LIMIT): leave less, or pack it."
        )
    tally.files, tally.bytes = tally.files + 1, tally.bytes + size


def _too_large(name: str, size: str, limit: int) -> ArtifactRefused:
    return ArtifactRefused(
        f"{name!r} has {size}, and a file may have {limit:,} (HOWL_ARTIFACT_LIMIT): pack it, or leave less."
    )


def _limited(source: Source, name: str, limit: int) -> Source:
    """Return the source with a limit in bytes, for files that grow while they are read."""

    def begin() -> Any:
        read, total = source(), 0

        def read_some(size: int) -> bytes:
            nonlocal total
            piece = read(size)
            total += len(piece)
            if total > limit:
                raise _too_large(name, "grown while it was read", limit)
            return piece

        return read_some

    return begin


def _hexadecimal(digest: str | None) -> str:
    return store.sha256_of(str(digest)).hex()
