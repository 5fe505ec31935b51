"""Uploads while NATS restarts, is full, is nowhere, or dies with the worker: well, or one clear error, in time."""

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from sqlalchemy import func, select

from howl.artifacts import store
from howl.config import Settings
from howl.connections import postgres
from howl.embedded.stack import Stack
from howl.errors import ArtifactFailed, ArtifactRefused
from howl.models import Artifact
from howl.server.artifacts.retention import Curator
from howl.worker.task import uploads
from tests.helpers.desk import Desk
from tests.helpers.gate import Gate
from tests.helpers.support import Process, eventually, taken_away

MEGABYTE = 1 << 20


def on_jetstream(settings: Settings, work: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = await nats.connect(settings.nats(), connect_timeout=5)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.fixture
def bucket(settings: Settings) -> Iterator[Callable[[], dict[str, int]]]:
    """The bucket as `howl server` makes it, which gives files their places; its messages by subject."""
    name = store.stream_name(store.bucket(settings.subject_prefix))

    def subjects() -> dict[str, int]:
        info = on_jetstream(settings, lambda stream: stream.stream_info(name, subjects_filter=">"))
        return info.state.subjects or {}

    with Desk(settings):
        yield subjects


@pytest.fixture
def uploader(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Upload from this process, waiting less between tries."""
    monkeypatch.setattr(uploads, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(uploads, "LAST_WAIT", 0.5)
    made: list[uploads.Uploader] = []

    def upload(content: bytes, url: str | None = None) -> Any:
        made.append(uploads.Uploader(settings.model_copy(update={"nats_url": url or settings.nats_url})))
        return made[-1].upload("file.bin", lambda: io.BytesIO(content).read, len(content))

    yield upload
    for each in made:
        asyncio.run_coroutine_threadsafe(_end(each), each.loop).result(20)
        each.loop.call_soon_threadsafe(each.loop.stop)
        eventually(lambda loop=each.loop: not loop.is_running())
        each.loop.close()


async def _end(uploader: uploads.Uploader) -> None:
    """A worker's process ends without; here, whatever is left open would be told as an error."""
    if uploader._connection is not None:
        await uploader._connection.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    if uploader._connection is not None:
        uploader._connection.abort()
    await asyncio.sleep(0.01)  # transports end in two turns of the loop


def test_an_upload_that_nats_leaves_in_the_middle_begins_anew_and_is_whole(
    settings: Settings, stack: Stack, bucket: Any, uploader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FIRST_WAIT", 2.0)
    monkeypatch.setattr(uploads, "LAST_WAIT", 20.0)  # `howl server` comes back a while after NATS does
    content = os.urandom(12 * MEGABYTE)
    with Gate(settings.nats(), limit=3 * MEGABYTE) as gate:
        stored: list[Any] = []
        uploading = threading.Thread(target=lambda: stored.append(uploader(content, gate.url)))
        uploading.start()
        assert gate.holds.wait(20)
        with taken_away(stack.nats):
            gate.open()
        uploading.join(120)
    assert [info.size for info in stored] == [len(content)]
    described = on_jetstream(
        settings, lambda stream: store.describe(stream, store.bucket(settings.subject_prefix), stored[0].name)
    )
    assert described.digest == stored[0].digest


def test_nats_that_is_nowhere_is_one_clear_error(uploader: Any) -> None:
    with pytest.raises(
        ArtifactFailed, match=r"'file\.bin' could not be stored at NATS, tried 5 times: .*Connect call failed"
    ):
        uploader(b"x", "nats://howl:secret@127.0.0.1:9")


def test_a_nats_without_the_bucket_says_whom_to_look_for(uploader: Any) -> None:
    with pytest.raises(ArtifactFailed, match="see whether `howl server` runs"):
        uploader(b"x")


def test_a_full_bucket_refuses_what_is_new_and_keeps_what_is_there(
    settings: Settings, uploader: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Desk(settings.model_copy(update={"artifact_room": 2 * MEGABYTE})):
        first = uploader(os.urandom(MEGABYTE))
        with pytest.raises(ArtifactRefused, match="room for files is full: raise HOWL_ARTIFACT_ROOM"):
            uploader(os.urandom(3 * MEGABYTE))
    assert "is not stored yet" not in caplog.text  # it was tried once
    bucket = store.bucket(settings.subject_prefix)
    assert on_jetstream(settings, lambda stream: _names(stream, bucket)) == [first.name]
    kept = on_jetstream(settings, lambda stream: _content(stream, bucket, first.name))
    assert hashlib.sha256(kept).digest() == store.sha256_of(first.digest)


async def _names(stream: JetStreamContext, bucket: str) -> list[str]:
    return [info.name for info in await (await stream.object_store(bucket)).list()]


async def _content(stream: JetStreamContext, bucket: str, name: str) -> bytes:
    return (await (await stream.object_store(bucket)).get(name)).data or b""


def test_a_silent_nats_is_given_up(
    settings: Settings, bucket: Any, uploader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SILENCE", 1.0)
    monkeypatch.setattr(store, "LOOK", 0.1)
    monkeypatch.setattr(uploads, "TRIES", 1)
    with Gate(settings.nats(), limit=2 * MEGABYTE) as gate:
        with pytest.raises(ArtifactFailed, match="nothing was acknowledged for 1 s"):
            uploader(os.urandom(20 * MEGABYTE), gate.url)


def test_a_large_file_takes_little_memory(settings: Settings, bucket: Any, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(90 * MEGABYTE)
    script = f"""
import resource
from howl.config import load_settings
from howl.worker.task.artifacts import _file
from howl.worker.task.uploads import upload
from pathlib import Path
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
source, size, _ = _file(Path({str(tmp_path / "large")!r}))
assert upload(load_settings(), "large", source, size).size == size == 90 << 20
print(peak() - before)
"""
    env = {"HOWL_NATS_URL": settings.nats(), "HOWL_SUBJECT_PREFIX": settings.subject_prefix, "HOWL_ENV_FILE": ""}
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | env, capture_output=True, text=True,
                         timeout=60, check=True)  # fmt: skip
    assert 0 <= int(run.stdout) < 32  # MiB


# --- the server, and a worker that dies ------------------------------------------------------------------------------


def artifact_rows(settings: Settings) -> int:
    with postgres.session(settings.database()) as opened:
        return int(opened.scalar(select(func.count()).select_from(Artifact)) or 0)


def test_of_an_upload_whose_worker_was_killed_nothing_is_listed_and_nothing_remains(
    settings: Settings, server: Process, start_worker: Any, app: Any, bucket: Any
) -> None:
    with Gate(settings.nats(), limit=4 * MEGABYTE) as gate:
        worker = start_worker(env={"HOWL_NATS_URL": gate.url, "HOWL_TASK_MODULES": "tests.helpers.ending_tasks"})
        app.send_task("endings.leave_bytes", ("big.bin", 20 * MEGABYTE))
        assert gate.holds.wait(20)
        worker.end()
    assert bucket()
    assert not [subject for subject in bucket() if ".M." in subject]
    curator = Curator(settings)
    on_jetstream(settings, lambda stream: curator.sweep(stream))
    assert bucket()  # it might be under way still
    on_jetstream(settings, lambda stream: curator.sweep(stream, age=0))
    assert (bucket(), artifact_rows(settings)) == ({}, 0)


def test_a_worker_without_nats_says_so_in_the_task_s_error(
    server: Process, start_worker: Any, app: Any, task_row: Any
) -> None:
    start_worker(env={"HOWL_NATS_URL": "", "HOWL_TASK_MODULES": "tests.helpers.ending_tasks"})
    task_id = app.send_task("endings.leave_bytes", ("x", 1)).id
    row = eventually(lambda: (found := task_row(task_id)) and found.finished_at and found)
    assert (row.error_type, "No address of NATS is known" in row.error_message) == ("howl.errors.NotConfigured", True)
