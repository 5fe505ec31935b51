"""Something to back up, hard to keep: and a look at everything, to compare before and after."""

import asyncio
import base64
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import psycopg
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta
from nats.js.errors import NotFoundError
from psycopg import sql

from howl.config import Settings
from howl.connections.postgres import session
from howl.models import Artifact, Base, Burst, Chord, RecordUsage, StoredPiece, Task, TaskEvent, Worker

NOW = datetime(2026, 11, 22, 13, 14, 15, 123456, tzinfo=UTC)
#: What COPY must escape, quote or keep apart.
AWKWARD = "tab\t, line\nbreak\r\n, back\\slash, \\N, \\., \"quotes', {braces}, NULL, ünïcödé 🐺, \x01"
CONTENTS = {"empty.txt": b"", "häßlich/../name with spaces": b"x" * 10, "pieces.bin": os.urandom(300_000)}
#: No bucket but those under the prefix is ours to keep.
OTHER_BUCKET = "somebody-elses"


def fill_database(settings: Settings) -> None:
    """Rows in every table, among them those that a careless copy would change."""
    with session(settings.database()) as opened:
        opened.add_all(_tasks())
        opened.flush()
        opened.add(Worker(worker_id="w1", tags=["a b", 'c"d', "", AWKWARD], run={"nested": [1, None]}, boot_id=None))
        opened.add_all(TaskEvent(task_id="done", kind="started", data={"number": n}) for n in range(50))
        opened.add(_artifact())
        opened.add(
            Burst(burst_id="b", origin="local", num_workers=1, runtime_minutes=0.1 + 0.2, minutes_planned=1e-300)
        )
        opened.add(StoredPiece(group_id="g", number=0, text=AWKWARD))
        opened.add(Chord(group_id="g", parts=["p1", "p2"], header=AWKWARD, body="{}"))
        opened.add(RecordUsage(redis_user="burst", level=0.1 + 0.2, updated_at=NOW))


def _tasks() -> list[Task]:
    long_ago = NOW - timedelta(days=400)
    ended: dict[str, Any] = {"status": "succeeded", "rank": 3, "attempts": 1, "finished_at": NOW}
    return [
        Task(
            task_id="done",
            name="tests.add",
            args=[1, 2**70, 1e-7],
            result={"text": AWKWARD.replace("\x01", "")},
            **ended,
        ),
        Task(task_id="null", result=None, traceback=AWKWARD, started_at=long_ago, **ended),
        Task(task_id="waiting", name="tests.add", args=[20, 22], kwargs={}, queue="celery", pushed_at=long_ago),
    ]


def running_task(**given: Any) -> Task:
    """A submitted task whose second attempt ran when the backup was made."""
    standing: dict[str, Any] = {"status": "started", "rank": 1, "attempts": 2, "worker_id": "w1", "started_at": NOW}
    return Task(task_id="running", name="tests.add", args=[1, 1], kwargs={}, queue="celery", **standing, **given)


def _artifact() -> Artifact:
    return Artifact(
        artifact_id="a", task_id="done", name="pieces.bin", media_type="x/y", size=1 << 40, sha256="0", location="l"
    )


def fill_buckets(settings: Settings) -> None:
    """Two buckets of ours, a deleted object, and a bucket of somebody else's."""
    on_jetstream(settings, lambda stream: _fill(stream, settings.subject_prefix))


async def _fill(stream: JetStreamContext, prefix: str) -> None:
    store = await stream.create_object_store(f"{prefix}-artifacts", description="files", max_bytes=10 << 20)
    for name, content in CONTENTS.items():
        meta = ObjectMeta(name=name, description=f"of {name}", headers={"Howl-Task": ["done", "ünï"]})
        await store.put(name, content, meta)
    await store.put("deleted", b"gone")
    await store.delete("deleted")
    await stream.create_object_store(prefix, storage="memory", max_bytes=1 << 20)
    with suppress(NotFoundError):
        await stream.delete_object_store(OTHER_BUCKET)
    await (await stream.create_object_store(OTHER_BUCKET, max_bytes=1 << 20)).put("theirs", b"theirs")


def drop_buckets(settings: Settings) -> None:
    """Give back what a server has no end of."""
    on_jetstream(settings, lambda stream: _drop(stream, settings.subject_prefix))


async def _drop(stream: JetStreamContext, prefix: str) -> None:
    for info in await stream.streams_info():
        name = str(info.config.name)
        if name.startswith((f"OBJ_{prefix}", f"OBJ_{OTHER_BUCKET}")):
            await stream.delete_stream(name)


def buckets(settings: Settings) -> list[str]:
    """Names of the streams of all buckets of the prefix."""
    infos = on_jetstream(settings, lambda stream: stream.streams_info())
    names = [str(info.config.name) for info in infos]
    return [name for name in names if name.startswith(f"OBJ_{settings.subject_prefix}")]


def on_jetstream(settings: Settings, work: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = await nats.connect(settings.nats(), connect_timeout=5)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def fill_folder(folder: Path) -> None:
    """What an init might leave: private files, a folder others may enter, a link, and `.env` beside it all."""
    (folder / "tls").mkdir(parents=True)
    folder.chmod(0o711)
    for name, mode in {"server.json": 0o600, "tls/key.pem": 0o640, "redis.conf": 0o644}.items():
        (folder / name).write_bytes(f"{name}\n\xff".encode("latin-1"))
        (folder / name).chmod(mode)
    (folder / "tls" / "server.pem").symlink_to("key.pem")
    (folder.parent / ".env").write_text("REDIS_PASSWORD=secret\n")
    (folder.parent / ".env").chmod(0o640)


_EVERYTHING = sql.SQL("SELECT r::text FROM {} r ORDER BY 1")


def all_rows(settings: Settings) -> dict[str, list[str]]:
    """Every row of every table, as PostgreSQL itself writes it."""
    with psycopg.connect(settings.database()) as connection:
        return {
            table.name: [str(row[0]) for row in connection.execute(_EVERYTHING.format(sql.Identifier(table.name)))]
            for table in Base.metadata.sorted_tables
        }


def all_objects(settings: Settings) -> dict[str, Any]:
    """Every bucket of the prefix with its limits, and every object with its content's digest."""
    return on_jetstream(settings, lambda stream: _look(stream, settings.subject_prefix))


async def _look(stream: JetStreamContext, prefix: str) -> dict[str, Any]:
    seen = {}
    for bucket in (prefix, f"{prefix}-artifacts"):
        store = await stream.object_store(bucket)
        config = (await store.status()).stream_info.config
        limits = (config.description, config.max_bytes, config.max_age, config.storage, config.num_replicas)
        seen[bucket] = (limits, [await _object(store, info) for info in await _infos(store)])
    return seen


async def _infos(store: Any) -> list[Any]:
    try:
        return sorted(await store.list(ignore_deletes=True), key=lambda info: info.name)
    except NotFoundError:
        return []


async def _object(store: Any, info: Any) -> tuple[Any, ...]:
    content = (await store.get(info.name)).data
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
    assert info.digest == f"SHA-256={digest}"
    return info.name, info.description, info.headers, info.size, info.chunks, info.options.max_chunk_size, info.digest


def all_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content by path, of `.env` too; folders have none of the latter."""
    found = {str(path.relative_to(folder)): path for path in (folder, *folder.rglob("*"))}
    found["../.env"] = folder.parent / ".env"
    return {
        name: (path.stat().st_mode & 0o777, path.read_bytes() if path.is_file() else b"")
        for name, path in found.items()
    }
