"""Files that tasks leave behind: whole or not at all, from every pool, through whatever happens to NATS meanwhile."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import nats
import pytest
from sqlalchemy import select

from howl.artifacts import store as objects
from howl.connections import postgres
from howl.models import Artifact
from tests.helpers.crew import Crew
from tests.helpers.support import eventually


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def crew(request: pytest.FixtureRequest, enlist: Any) -> Crew:
    return enlist(request.param)


def rows(crew: Crew, task_id: str) -> list[Artifact]:
    with postgres.session(crew.settings.database()) as opened:
        return list(opened.scalars(select(Artifact).where(Artifact.task_id == task_id).order_by(Artifact.name)))


def kept(crew: Crew, task_id: str) -> list[Artifact]:
    """The task's rows once the server has looked for their objects."""
    return eventually(lambda: (found := rows(crew, task_id)) and all(row.status == "kept" for row in found) and found)


def content(crew: Crew, artifact_id: str) -> bytes:
    """As NATS's own client reads it."""

    async def read() -> bytes:
        client = await nats.connect(crew.settings.nats(), connect_timeout=5)
        try:
            store = await client.jetstream().object_store(objects.bucket(crew.name))
            return (await store.get(artifact_id)).data or b""
        finally:
            await client.close()

    return asyncio.run(read())


def test_a_file_of_several_pieces_is_kept_whole_and_described(crew: Crew) -> None:
    task_id = crew.send("leave_bytes", "report.bin", 3_000_001)
    assert crew.ended(task_id).status == "succeeded"
    (row,) = kept(crew, task_id)
    whole = content(crew, row.artifact_id)
    assert (row.name, row.media_type, row.size) == ("report.bin", "application/octet-stream", 3_000_001)
    assert hashlib.sha256(whole).hexdigest() == row.sha256
    assert crew.row(task_id).result == {"name": row.name, "media_type": row.media_type, "size": row.size,
                                        "sha256": row.sha256}  # fmt: skip
    assert (row.worker_id, row.attempt) == ("w1", 1)


def test_a_file_without_content_is_a_file(crew: Crew) -> None:
    task_id = crew.send("leave_text", [""], "empty.log")
    (row,) = kept(crew, task_id)
    assert (row.size, row.sha256) == (0, hashlib.sha256(b"").hexdigest())


def test_a_file_at_a_path_keeps_its_name(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "häßlich name.json").write_text("{}")
    task_id = crew.send("leave_file", str(tmp_path / "häßlich name.json"))
    (row,) = kept(crew, task_id)
    assert (row.name, row.media_type) == ("häßlich name.json", "application/json")


def test_a_name_used_again_stands_for_the_newer_file(crew: Crew) -> None:
    task_id = crew.send("leave_text", ["older", "newer"], "log.txt")
    crew.ended(task_id)
    (row,) = kept(crew, task_id)
    assert content(crew, row.artifact_id) == b"newer"


def test_an_attempt_replaces_what_the_one_before_it_left(crew: Crew) -> None:
    task_id = crew.send("leave_and_retry")
    eventually(lambda: (row := crew.row(task_id)) and row.status == "succeeded")
    (row,) = kept(crew, task_id)
    assert (row.attempt, content(crew, row.artifact_id)) == (2, b"attempt 2")


def test_what_a_failing_task_left_is_kept(crew: Crew) -> None:
    task_id = crew.send("leave_and_fail")
    assert crew.ended(task_id).status == "failed"
    assert [row.name for row in kept(crew, task_id)] == ["why.txt"]
    assert crew.kinds(task_id) == ["artifact", "failed"]


def test_tasks_leave_files_side_by_side(crew: Crew) -> None:
    sent = [crew.send("leave_bytes", f"{number}.bin", 2_000_000) for number in range(6)]
    for task_id in sent:
        (row,) = kept(crew, task_id)
        assert hashlib.sha256(content(crew, row.artifact_id)).hexdigest() == row.sha256


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../x", "leads to another folder"), ("/etc/passwd", "leads to another folder"), ("..", "another folder"),
        ("a\\b", "another folder"), ("", "is empty"), ("  ", "is empty"), ("a\nb", "control characters"),
        ("a\x00", "control characters"), ("\u202egnp.exe", "no screen shows"), ("ü" * 128, "longer than 255 bytes"),
        (".env", "a dot or a hyphen"), ("-rf", "a dot or a hyphen"), (" .env", "begins with a space"),
        ("report.", "ends with one or with a dot"), ("report ", "ends with one"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_file_name_is_refused(crew: Crew, name: str, why: str) -> None:
    row = crew.ended(crew.send("leave_text", ["x"], name))
    assert (row.error_type, why in str(row.error_message)) == ("howl.errors.ArtifactRefused", True)
    assert rows(crew, row.task_id) == []


def test_bytes_without_a_name_are_refused(crew: Crew) -> None:
    assert "need a name" in str(crew.ended(crew.send("leave_text", ["x"], None)).error_message)


@pytest.mark.parametrize("media_type", ["png", "image/png; q=1", "a/b\r\nX: y", "/", "Image/PNG"])
def test_a_media_type_that_is_none_is_refused(crew: Crew, media_type: str) -> None:
    row = crew.ended(crew.send("leave_text", ["x"], "x", media_type))
    assert "media type" in str(row.error_message)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(crew: Crew, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(500 << 20)
    row = crew.ended(crew.send("leave_file", str(tmp_path / "huge")))
    assert "'huge' has 524,288,000 bytes, and a file may have 104,857,600" in str(row.error_message)
    assert row.runtime < 5


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "device"])
def test_what_is_no_file_is_refused(crew: Crew, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind if kind != "device" else Path("/dev/zero")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    row = crew.ended(crew.send("leave_file", str(path)))
    assert str(path) in str(row.error_message)
    assert row.error_type in ("howl.errors.ArtifactRefused", "howl.errors.ArtifactFailed")
