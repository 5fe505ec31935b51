"""`howl artifacts`: what is listed can be had, whole, checked, and nowhere but where it was asked for."""

import asyncio
import hashlib
import io
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner, Result
from nats.js.api import ObjectInfo
from sqlalchemy import text
from sqlalchemy.orm import Session

from howl.artifacts import download, store
from howl.cli import main
from howl.config import Settings
from howl.models import Artifact, Task
from howl.server.artifacts.retention import Curator

TASK_ID = "1f0c9a00-0000-4000-8000-000000000001"
CONTENT = os.urandom(2_500_000)
FILES = {"big.bin": CONTENT, "empty": b"", "note.txt": b"line\n"}


@pytest.fixture
def keep(settings: Settings, session: Session) -> Callable[..., str]:
    """Leave a file of the task's, as a worker and the server together do; returns the object's name."""
    session.add(Task(task_id=TASK_ID, name="tests.leave", status="succeeded", rank=3))
    session.commit()
    numbers = iter(range(1000))

    def _keep(name: str, content: bytes, **told: Any) -> str:
        artifact_id = f"{next(numbers):032x}"
        asyncio.run(_put(settings, artifact_id, content))
        facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "media_type": "text/plain"}
        location = f"{store.bucket(settings.subject_prefix)}/{artifact_id}"
        session.add(Artifact(artifact_id=artifact_id, task_id=TASK_ID, name=name, location=location, **facts | told))
        session.commit()
        return artifact_id

    return _keep


async def _put(settings: Settings, artifact_id: str, content: bytes) -> None:
    client = await nats.connect(settings.nats(), connect_timeout=5)
    try:
        await Curator(settings).make_bucket(client.jetstream())
        info = ObjectInfo(artifact_id, store.bucket(settings.subject_prefix), f"howl.{artifact_id}")
        await store.put(store.Flight(client), info, io.BytesIO(content).read)
    finally:
        await client.close()


@pytest.fixture
def howl(env: dict[str, str]) -> Callable[..., Result]:
    return lambda *line: CliRunner().invoke(main, ("artifacts", *line), env=env | {"COLUMNS": "120"})


@pytest.fixture
def left(keep: Callable[..., str]) -> None:
    for name, content in FILES.items():
        keep(name, content)


def test_files_are_listed_for_people_and_programs(left: None, howl: Any) -> None:
    assert "2.5 MB" in howl("list").output
    rows = json.loads(howl("list", "--task", "1f0c9a", "--json").output)
    assert [(row["name"], row["size"]) for row in rows] == [(name, len(FILES[name])) for name in sorted(FILES)]


def test_a_task_shows_the_files_it_left(left: None, env: dict[str, str]) -> None:
    shown = CliRunner().invoke(main, ("tasks", "show", "1f0c9a"), env=env | {"COLUMNS": "120"}).output
    assert all(name in shown for name in FILES)


def test_all_files_of_a_task_arrive_whole(left: None, howl: Any, tmp_path: Path) -> None:
    answer = howl("get", "1f0c9a", "--to", str(tmp_path), "--json")
    assert answer.exit_code == 0, answer.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    assert json.loads(answer.output)[0]["path"] == str(tmp_path / "big.bin")


def test_a_file_goes_to_standard_output(left: None, howl: Any) -> None:
    assert howl("get", "1f0c9a", "big.bin", "--stdout").stdout_bytes == CONTENT


def test_standard_output_takes_one_file(left: None, howl: Any) -> None:
    assert "--stdout is for one file" in howl("get", "1f0c9a", "--stdout").output


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_nothing_is_overwritten_unasked(left: None, howl: Any, tmp_path: Path, kind: str) -> None:
    folder, other = tmp_path / "to", tmp_path / "other"
    folder.mkdir()
    if kind == "folder":
        (folder / "note.txt").mkdir()
    elif kind == "file":
        (folder / "note.txt").write_text("mine")
    else:
        (folder / "note.txt").symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    answer = howl("get", "1f0c9a", "note.txt", "--to", str(folder))
    assert (answer.exit_code, "is there already" in answer.output) == (1, True)
    assert other.exists() == (kind == "link")
    assert [path.name for path in folder.iterdir()] == ["note.txt"]


def test_force_overwrites_a_link_and_not_what_it_leads_to(left: None, howl: Any, tmp_path: Path) -> None:
    folder, other = tmp_path / "to", tmp_path / "other"
    folder.mkdir()
    other.write_text("mine")
    (folder / "note.txt").symlink_to(other)
    assert howl("get", "1f0c9a", "note.txt", "--to", str(folder), "--force").exit_code == 0
    assert ((folder / "note.txt").read_bytes(), other.read_text()) == (b"line\n", "mine")


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "..", "a/b"])
def test_a_row_whose_name_leads_elsewhere_is_not_saved(
    keep: Callable[..., str], settings: Settings, howl: Any, tmp_path: Path, name: str
) -> None:
    keep(name, b"x")
    (tmp_path / "to").mkdir()
    answer = howl("get", "1f0c9a", "--to", str(tmp_path / "to"))
    assert answer.exit_code == 1
    row = {"name": name, "task_id": TASK_ID}
    with pytest.raises(download.ArtifactFailed, match="leads to another folder"):
        download.save(settings, row, tmp_path / "to")
    assert [path.name for path in tmp_path.rglob("*")] == ["to"]


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        (".env", "_env"), ("-rf", "_rf"), ("..config", "_.config"), (" .env", "_.env"),
        ("report.txt.", "report.txt"), ("report .", "report"), (". .", "_"), (".ENV ", "_ENV"),
    ],
)  # fmt: skip
def test_a_row_from_before_such_names_were_refused_is_saved_under_a_plain_one(
    keep: Callable[..., str], howl: Any, tmp_path: Path, name: str, saved: str
) -> None:
    keep(name, b"x")
    answer = howl("get", "1f0c9a", "--to", str(tmp_path), "--json")
    assert answer.exit_code == 0, answer.output
    assert [path.name for path in tmp_path.iterdir()] == [saved]
    assert howl("get", "1f0c9a", "--to", str(tmp_path), "--", name).exit_code == 1  # it is there already


def test_a_task_whose_id_is_a_path_has_a_folder_of_its_own_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for task_id in ("../../x", "/etc", ".git", "-x", "CON", "a" * 255, "\n", TASK_ID):
        folder = download.own_folder(task_id)
        assert folder.parent == Path("howl-artifacts")
        assert folder.name.replace("-", "").isalnum()
    assert download.own_folder(TASK_ID).name == TASK_ID
    (tmp_path / "howl-artifacts").chmod(0o777)
    with pytest.raises(download.ArtifactFailed, match="you alone"):
        download.own_folder(TASK_ID)


def test_content_that_is_not_what_was_recorded_is_not_saved(
    keep: Callable[..., str], howl: Any, tmp_path: Path
) -> None:
    keep("short.txt", b"other content", size=len(b"other content"), sha256="0" * 64)
    answer = howl("get", "1f0c9a", "short.txt", "--to", str(tmp_path))
    assert (answer.exit_code, "is damaged" in answer.output, [*tmp_path.iterdir()]) == (1, True, [])


def test_a_file_whose_content_is_gone_says_so(
    keep: Callable[..., str], settings: Settings, howl: Any, tmp_path: Path
) -> None:
    artifact_id = keep("gone.txt", b"x")
    asyncio.run(_remove(settings, artifact_id))
    answer = howl("get", "1f0c9a", "gone.txt", "--to", str(tmp_path))
    assert (answer.exit_code, "is no longer at NATS" in answer.output, [*tmp_path.iterdir()]) == (1, True, [])


def test_an_unknown_file_names_those_there_are(left: None, howl: Any) -> None:
    assert "it left 'big.bin', 'empty', 'note.txt'" in howl("get", "1f0c9a", "nothing.txt").output


# --- the curator -----------------------------------------------------------------------------------------------------


async def _remove(settings: Settings, artifact_id: str) -> None:
    await _curate(settings, lambda stream: store.remove(stream, store.bucket(settings.subject_prefix), artifact_id))


async def _curate(settings: Settings, act: Callable[[Any], Any]) -> None:
    client = await nats.connect(settings.nats(), connect_timeout=5)
    try:
        await act(client.jetstream())
    finally:
        await client.close()


def statuses(settings: Settings, session: Session) -> dict[str, str]:
    asyncio.run(_curate(settings, Curator(settings).look_for_arrivals))
    session.expire_all()
    return {row.name: row.status for row in session.query(Artifact)}


def test_a_row_whose_object_is_not_as_told_is_noticed(
    keep: Callable[..., str], settings: Settings, session: Session
) -> None:
    keep("there", b"x")
    keep("larger", b"x", size=2)
    keep("other", b"x", sha256="0" * 64)
    asyncio.run(_remove(settings, keep("gone", b"x")))
    assert statuses(settings, session) == {"there": "kept", "larger": "missing", "other": "missing", "gone": "missing"}


def test_a_file_that_is_lost_is_no_longer_shown_as_kept_and_is_when_it_is_back(
    keep: Callable[..., str], settings: Settings, session: Session
) -> None:
    lost = keep("lost", b"x" * store.PIECE * 2)
    keep("empty", b"")
    keep("whole", b"x")
    assert statuses(settings, session) == dict.fromkeys(("lost", "empty", "whole"), "kept")
    curator = Curator(settings)
    asyncio.run(_curate(settings, curator.have_all))
    pieces = store.pieces_subject(store.bucket(settings.subject_prefix), f"*.{lost}")
    name = store.stream_name(store.bucket(settings.subject_prefix))
    asyncio.run(_curate(settings, lambda stream: stream.purge_stream(name, subject=pieces)))
    # A record that was put back, whole or row by row.
    session.execute(text("CREATE TEMPORARY TABLE old AS SELECT * FROM artifacts"))
    session.execute(text("TRUNCATE artifacts"))
    session.execute(text("INSERT INTO artifacts SELECT * FROM old"))
    session.commit()
    asyncio.run(_curate(settings, curator.have_all))
    assert statuses(settings, session) == {"lost": "missing", "empty": "kept", "whole": "kept"}
    asyncio.run(_remove(settings, lost))
    asyncio.run(_put(settings, lost, b"x" * store.PIECE * 2))
    asyncio.run(_curate(settings, curator.count))
    asyncio.run(_curate(settings, curator.have_all))
    assert statuses(settings, session)["lost"] == "kept"


def test_a_file_whose_time_is_over_goes_with_its_row_and_no_other_does(
    keep: Callable[..., str], settings: Settings, session: Session, howl: Any, tmp_path: Path
) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    keep("old", b"old", expires_at=past)
    keep("new", b"new", expires_at=past + timedelta(days=1))
    asyncio.run(_curate(settings, Curator(settings).let_go))
    assert howl("get", "1f0c9a", "--to", str(tmp_path)).exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"new": b"new"}
    bucket = store.bucket(settings.subject_prefix)
    left: list[int] = []

    async def count(stream: Any) -> None:
        left.append((await stream.stream_info(store.stream_name(bucket))).state.messages)

    asyncio.run(_curate(settings, count))
    assert left == [2]
