"""State folders that PostgreSQL's account may enter, and stacks in them."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from howl.embedded.stack import Stack
from howl.files import take_lock
from tests.helpers.support import servers_folder


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A state folder that does not exist yet."""
    with _state_folder() as folder:
        yield folder


@pytest.fixture
def home(used_home: Path) -> Iterator[Path]:
    """A state folder that a stack has used before: making PostgreSQL's data folder anew takes most of a second."""
    with _state_folder() as folder:
        # cp, because shutil does not keep the owner.
        subprocess.run(["cp", "-a", str(used_home), str(folder)], check=True, timeout=30)
        (folder / "ports.json").unlink()  # of which others may be thinking
        yield folder


@pytest.fixture(scope="session")
def used_home() -> Iterator[Path]:
    with _state_folder() as folder:
        with Stack(folder):
            pass
        yield folder


@pytest.fixture
def stack(home: Path) -> Iterator[Stack]:
    """A stack to do anything to."""
    with Stack(home) as running:
        yield running


@pytest.fixture(scope="module")
def calm_stack() -> Iterator[Stack]:
    """A stack shared by tests that leave it running as it was."""
    with _state_folder() as folder, Stack(folder) as running:
        yield running


@contextmanager
def _state_folder() -> Iterator[Path]:
    """With a space in its path, and enterable: pytest's own folders are closed to `nobody`, whom PostgreSQL runs as."""
    folder = servers_folder("howl-")
    try:
        yield folder / "state folder"
    finally:
        for lock in folder.glob("*/*.alive"):
            take_lock(lock, 10).close()  # a server whose parent was killed may be tidying up just now
        shutil.rmtree(folder)
