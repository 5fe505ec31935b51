"""What the owner of a worker says, and a program that is hard to get rid of."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery, current_app

from howl.errors import ArtifactRefused
from workers import web
from workers.checkout import collect, permissions
from workers.process import process


@pytest.fixture(scope="session")
def plain_app() -> Celery:
    """An application that needs no settings, for tasks called as functions."""
    return Celery("plain", set_as_current=False)


@pytest.fixture(autouse=True)
def owner_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plain_app: Celery) -> Iterator[Callable[..., None]]:
    """`owner_says(HOWL_NAME="value")` gives this process, as a worker, settings of its own."""
    before = current_app._get_current_object()
    plain_app.set_current()

    def say(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        permissions.settings.cache_clear()

    say(HOWL_HOME=str(tmp_path))
    yield say
    permissions.settings.cache_clear()
    web._trusted.cache_clear()
    before.set_current()


@pytest.fixture
def script(owner_says: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """`script("echo hello")` makes that the agent; returns the folder below which agents get theirs."""
    root = tmp_path / "work"
    root.mkdir()

    def set_up(text: str, **variables: str) -> Path:
        command = shlex.join(["sh", "-c", text, "agent", "{prompt}"])
        owner_says(HOWL_AGENT_COMMAND=command, HOWL_WORK_FOLDER=str(root), **variables)
        return root

    return set_up


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What an agent's run keeps, by name, where no worker runs it (tests/workers/test_agents_at_work.py has one)."""
    found: dict[str, bytes] = {}

    def keep(path: Path, name: str, media_type: str | None) -> dict[str, str]:
        if name.startswith("refuse"):
            raise ArtifactRefused("as told")
        found[name] = path.read_bytes()
        return {"name": name}

    monkeypatch.setattr(collect, "artifact", keep)
    return found


@pytest.fixture
def time_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], float]:
    """`timeout=time_out(is_there)`: a limit of time that a program has reached as soon as it has come so far.

    Seconds would be too few where other tests keep the machine busy, and too many anywhere else.
    """

    def at(is_there: Callable[[], object], limit: float = 60.0) -> float:
        passed = [0.0]

        def monotonic() -> float:
            if not passed[0] and is_there():
                passed[0] = limit
            return time.monotonic() + passed[0]

        monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=monotonic))
        return limit

    return at


@pytest.fixture
def tree(tmp_path: Path) -> Iterator["Tree"]:
    made = Tree(tmp_path / "pids")
    yield made
    for pid in filter(is_running, made.pids):
        os.kill(pid, signal.SIGKILL)


class Tree:
    """The command line of a program that is hard to get rid of, and the pids of its three processes."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def argv(self, *more: str) -> list[str]:
        return [sys.executable, str(Path(__file__).parents[1] / "helpers" / "stubborn.py"), str(self.notes), *more]

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.notes.read_text().split()] if self.notes.exists() else []

    def is_complete(self) -> bool:
        return len(self.pids) == 3 and all(map(is_running, self.pids))

    def is_gone(self) -> bool:
        return len(self.pids) == 3 and not any(map(is_running, self.pids))


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be collected."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, timeout=20).stdout
    return bool(state.strip()) and not state.startswith("Z")
