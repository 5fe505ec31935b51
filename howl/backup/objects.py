"""Backup and restore of the object store: every bucket under the subject prefix, object by object."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ObjectInfo, ObjectMetaOptions, StorageType, StreamInfo
from nats.js.errors import BucketNotFoundError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from howl.artifacts.store import STREAM, Flight, digest_of, pieces, put
from howl.backup.archive import Progress, Writer, members
from howl.backup.manifest import Bucket, Objects, Stored
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import Connection
from howl.errors import BackupFailed, RestoreRefused

#: Seconds to wait for the list of a bucket's objects.
LIST_TIMEOUT = 60.0
#: Bytes of a piece of an object whose writer gave no size.
PIECE_SIZE = 128 << 10
#: Attempts at reading an object that is replaced meanwhile.
ATTEMPTS = 3


def save(settings: Settings, writer: Writer, progress: Progress) -> Objects:
    """Write all objects; raises NotConfigured or BackupFailed."""
    return asyncio.run(_save(settings, writer, progress))


async def _save(settings: Settings, writer: Writer, progress: Progress) -> Objects:
    async with _connection(settings) as client:
        stream = client.jetstream()
        found = [info async for info in _streams(stream, settings.subject_prefix)]
        buckets = [await _save_bucket(stream, info, writer, progress) for info in found]
        told = client.connected_server_version
        return Objects(
            nats=f"{told.major}.{told.minor}.{told.patch}", subject_prefix=settings.subject_prefix, buckets=buckets
        )


async def _streams(stream: JetStreamContext, prefix: str) -> AsyncIterator[StreamInfo]:
    """Yield the streams of the buckets `prefix`, `prefix-…` and `prefix_…`, sorted by name."""
    found: list[StreamInfo] = []
    while page := await stream.streams_info(offset=len(found)):
        found += page
    ours = re.compile(rf"{STREAM}{re.escape(prefix)}([-_].*)?")
    for info in sorted(found, key=lambda info: str(info.config.name)):
        if ours.fullmatch(str(info.config.name)):
            yield info


async def _save_bucket(stream: JetStreamContext, info: StreamInfo, writer: Writer, progress: Progress) -> Bucket:
    name, config = str(info.config.name).removeprefix(STREAM), info.config
    store = await stream.object_store(name)
    listed = await _listed(store)
    objects: list[Stored] = []
    for number, found in enumerate(listed, start=1):
        stored = await _save_object(stream, store, found.name, f"objects/{name}/{number:06}", writer)
        objects += [stored] if stored else []
        progress(f"bucket {name}", number, len(listed))
    return Bucket(
        name=name, description=config.description, ttl=config.max_age, max_bytes=config.max_bytes,
        storage=StorageType(config.storage or "file").value, replicas=config.num_replicas or 1, objects=objects,
    )  # fmt: skip


async def _listed(store: ObjectStore) -> list[ObjectInfo]:
    try:
        return sorted(await asyncio.wait_for(store.list(ignore_deletes=True), LIST_TIMEOUT), key=lambda info: info.name)
    except NotFoundError:  # nothing is in it
        return []


async def _save_object(
    stream: JetStreamContext, store: ObjectStore, name: str, member: str, writer: Writer
) -> Stored | None:
    """Save an object; None if it was deleted since it was listed. Read it again if it is replaced meanwhile."""
    for _ in range(ATTEMPTS):
        try:
            info = await store.get_info(name)
        except ObjectNotFoundError:
            return None
        if info.is_link():
            raise BackupFailed(f"The object {name!r} of bucket {info.bucket} is a link, which HOWL never makes.")
        with writer.scratch() as file:
            if await _read(stream, info, file):
                await asyncio.to_thread(writer.add, member, file)
                return _described(info, member)
    raise BackupFailed(f"The object {name!r} of bucket {store._name} is damaged, or changes all the time.")  # noqa: SLF001


async def _read(stream: JetStreamContext, info: ObjectInfo, file: IO[bytes]) -> bool:
    """Read an object into a file; return whether all of it arrived with the right digest."""
    digest = hashlib.sha256()
    try:
        async for piece in pieces(stream, info):
            digest.update(piece)
            file.write(piece)
    except TimeoutError:
        return False
    return info.digest == digest_of(digest.digest())


def _described(info: ObjectInfo, member: str) -> Stored:
    return Stored(
        name=info.name, description=info.description, headers=info.headers, size=info.size or 0,
        digest=str(info.digest), member=member,
        chunk_size=(info.options and info.options.max_chunk_size) or PIECE_SIZE,
    )  # fmt: skip


def require_empty(settings: Settings, objects: Objects) -> None:
    """Raise RestoreRefused if the buckets hold anything but these very objects, BackupFailed without JetStream."""
    if objects.buckets and objects.subject_prefix != settings.subject_prefix:
        raise RestoreRefused(
            f"The backup's objects belong to HOWL_SUBJECT_PREFIX={objects.subject_prefix}: set it, then restore."
        )
    asyncio.run(_missing(settings, objects))


async def _missing(settings: Settings, objects: Objects) -> set[str]:
    """Return the members of missing objects, so that an interrupted restore continues where it stopped."""
    async with _connection(settings) as client:
        await client.jetstream().account_info()
        return {stored.member for bucket in objects.buckets for stored in await _missing_in(client.jetstream(), bucket)}


async def _missing_in(stream: JetStreamContext, bucket: Bucket) -> list[Stored]:
    try:
        there = {info.name: info.digest for info in await _listed(await stream.object_store(bucket.name))}
    except BucketNotFoundError:
        return bucket.objects
    expected = {stored.name: stored.digest for stored in bucket.objects}
    strangers = [name for name, digest in there.items() if expected.get(name) != digest]
    if strangers:
        raise RestoreRefused(
            f"The bucket {bucket.name} holds something else already ({strangers[0]!r}): delete the bucket, or restore "
            "into another NATS."
        )
    return [stored for stored in bucket.objects if stored.name not in there]


def load(settings: Settings, archive: Path, objects: Objects, progress: Progress) -> None:
    """Create the buckets and put the missing objects into them; raises RestoreRefused or BackupFailed."""
    missing = asyncio.run(_missing(settings, objects))
    asyncio.run(_load(settings, archive, objects, missing, progress))


async def _load(settings: Settings, archive: Path, objects: Objects, missing: set[str], progress: Progress) -> None:
    by_member = {stored.member: (bucket, stored) for bucket in objects.buckets for stored in bucket.objects}
    async with _connection(settings) as client:
        stream = client.jetstream()
        for bucket in objects.buckets:
            await _make(stream, bucket)
        flight = Flight(client)
        for number, (name, file) in enumerate(members(archive, missing), start=1):
            bucket, stored = by_member[name]
            await put(flight, _info(bucket, stored), file.read)
            progress("objects", number, len(missing))


async def _make(stream: JetStreamContext, bucket: Bucket) -> None:
    try:
        await stream.object_store(bucket.name)
    except BucketNotFoundError:
        await stream.create_object_store(
            bucket.name, description=bucket.description, ttl=bucket.ttl, max_bytes=bucket.max_bytes,
            storage=bucket.storage, replicas=bucket.replicas,
        )  # fmt: skip


def _info(bucket: Bucket, stored: Stored) -> ObjectInfo:
    options = ObjectMetaOptions(max_chunk_size=stored.chunk_size)
    # An artifact's pieces are found by its name, which is one token of a subject.
    part = stored.name if re.fullmatch(r"[A-Za-z0-9_-]+", stored.name) else secrets.token_hex(16)
    return ObjectInfo(
        name=stored.name, bucket=bucket.name, nuid=f"restored.{part}", description=stored.description,
        headers=stored.headers, options=options,
    )  # fmt: skip


@asynccontextmanager
async def _connection(settings: Settings) -> AsyncIterator[Connection]:
    """Open a connection that is not re-established: half an object is none."""
    try:
        client = await Connection().open(settings, "howl backup")
        try:
            yield client
        finally:
            await client.close()
    except (NatsError, ConnectionError, TimeoutError) as error:  # no other OSError: a full disk is not NATS's fault
        raise _unusable(error) from error


def _unusable(error: Exception) -> BackupFailed:
    return BackupFailed(f"NATS's object store cannot be used: {reason(error)}.")
