"""Root runs PostgreSQL as nobody; an ordinary user runs everything as itself."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import howl
from howl.embedded import binaries
from howl.embedded.account import closed_folder
from howl.embedded.stack import Stack, StackUrls
from howl.errors import EmbeddedServerError
from tests.helpers import clients, parent

pytestmark = pytest.mark.servers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about what root must do")

REPOSITORY = Path(howl.__file__).parents[1]


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that only its owner may enter, like root's home."""
    folder = Path(tempfile.mkdtemp(prefix="howl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_an_ordinary_user_runs_every_server_as_itself(new_home: Path) -> None:
    user = _become_nobody(new_home) if os.geteuid() == 0 else []
    command = [sys.executable, "-m", parent.__name__, str(new_home), *user]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        uids = {Path(f"/proc/{pid}").stat().st_uid for pid in said["pids"]}
        assert uids == {new_home.parent.stat().st_uid} != {0}
        clients.write(StackUrls(**said["urls"]))
        assert clients.read(StackUrls(**said["urls"])) == ("kept", "kept", "kept")
        assert new_home.stat().st_mode & 0o777 == 0o700
    finally:
        process.kill()
        process.communicate(timeout=10)


@as_root
def test_root_runs_postgresql_as_nobody_and_keeps_its_data_closed(stack: Stack) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    assert Path(f"/proc/{stack.postgres.pid}").stat().st_uid == nobody
    assert (stack.home / "postgres").stat().st_uid == nobody
    assert stack.home.stat().st_mode & 0o777 == 0o711


@as_root
def test_an_installation_that_nobody_may_not_enter_is_copied(
    closed: Path, new_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = binaries.postgres_installation().parent
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, closed / folder.name, symlinks=True)
    installation = closed / wheel.name / binaries.POSTGRES_VERSION_FOLDER
    monkeypatch.setattr(binaries, "postgres_installation", lambda: installation)
    with Stack(new_home) as running:
        program = Path(f"/proc/{running.postgres.pid}/exe").readlink()
        clients.write(running.urls)
    assert program.is_relative_to(new_home)


@as_root
@pytest.mark.parametrize("name", [".", "below/it"])
def test_a_state_folder_that_nobody_may_not_enter_is_refused_by_name(closed: Path, name: str) -> None:
    with pytest.raises(EmbeddedServerError, match=f"may not enter {closed}: choose another HOWL_HOME"):
        Stack(closed / name).start()


@as_root
def test_a_state_folder_of_somebody_else_is_refused(new_home: Path) -> None:
    new_home.mkdir(mode=0o755)
    os.chown(new_home, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(EmbeddedServerError, match="belongs to somebody else"):
        Stack(new_home).start()
    assert list(new_home.iterdir()) == []


def test_a_state_folder_that_anyone_may_write_to_is_refused_and_keeps_its_mode(new_home: Path) -> None:
    new_home.mkdir()
    new_home.chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="anyone may write to it"):
        Stack(new_home).start()
    assert new_home.stat().st_mode & 0o777 == 0o777


def test_a_state_folder_that_cannot_be_made_is_explained(new_home: Path) -> None:
    new_home.touch()
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        Stack(new_home / "below a file").start()


def _become_nobody(home: Path) -> list[str]:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(home.parent, nobody, -1)
    if closed_folder(binaries.nats_server().parent) or closed_folder(REPOSITORY):
        pytest.skip("an ordinary user may not enter this repository: run the tests as one")
    return [str(nobody)]
