"""What tests share beside fixtures: patience, processes, and servers that go away."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fork_server import Forked, can_fork

#: Seconds that anything expected of a real process may take on a machine that other tests keep busy as well.
PATIENCE = 45.0

#: A file system in memory, where Linux has one, and the free bytes that make it big enough for the tests' servers.
MEMORY = Path("/dev/shm")  # noqa: S108  # nothing but folders that mkdtemp makes is used in it
ROOM = 4 << 30


def eventually(look: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Look until what is seen is true, and return it; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s; last seen: {seen!r}"
        time.sleep(0.05)
    return seen


def servers_folder(prefix: str) -> Path:
    """A new folder, in memory if it can be: there, a busy disk does not make databases ten times slower to clone."""
    fast = _has_room(MEMORY)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY) if fast else tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    folder.chmod(0o711)  # PostgreSQL runs as another user when tests run as root
    return folder


def _has_room(folder: Path) -> bool:
    """A container's is small, or runs no program, which a copy of PostgreSQL in it must."""
    if not os.access(folder, os.W_OK):
        return False
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize > ROOM and not state.f_flag & os.ST_NOEXEC


def optional_program(*names: str) -> str:
    """The path of a program that not everyone has, the first there is of these names.

    Without any a test is skipped, but fails in CI, which installs one.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{names[0]} is missing, which .ci/run should have installed")
    return found or pytest.skip(f"{names[0]} is not installed: this test needs it")


def as_an_ordinary_user() -> list[str]:
    """What a command line begins with to be nobody's, where tests run as root; nobody may enter root's folders then."""
    if os.geteuid() != 0:
        return []
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [optional_program("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups", *may_read]


class Process:
    """A real `howl` process, its output in a file; `forks` starts it faster (tests/helpers/fork_server.py)."""

    popen: subprocess.Popen[bytes] | Forked

    def __init__(self, argv: list[str], env: dict[str, str], log: Path, *, forks: bool = False) -> None:
        self.log = log
        with log.open("wb") as output:
            if forks and can_fork(argv, env):
                with Path(os.devnull).open() as nothing:
                    streams = (nothing.fileno(), output.fileno(), output.fileno())
                    self.popen = Forked(argv, env, Path.cwd(), streams)
            else:
                self.popen = subprocess.Popen(
                    argv, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.popen.wait(timeout)

    def end(self) -> None:
        """SIGKILL for it and its children: a test that wants a good end asks for it itself."""
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)


def run_program(
    argv: list[str], env: dict[str, str], *, stdin: str = "", timeout: float = 2 * PATIENCE, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `howl …` or `celery …` to its end, as `subprocess.run` would with texts captured."""
    if not can_fork(argv, env):
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, check=check)
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        process = Forked(argv, env, Path.cwd(), (given.fileno(), output.fileno(), errors.fileno()))
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    done = subprocess.CompletedProcess(argv, code, *texts)
    if check:
        done.check_returncode()
    return done


@contextmanager
def taken_away(server: Any) -> Iterator[None]:
    """One of the stack's servers is away for a while."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def listens(port: int, host: str = "127.0.0.1") -> None:
    """Wait until somebody accepts connections there."""

    def answers() -> bool:
        with socket.socket() as attempt:
            attempt.settimeout(2)
            return attempt.connect_ex((host, port)) == 0

    eventually(answers)
