"""`make demo`: it keeps its claims, uses nothing that is set around it, leaves nothing behind, and sees what is off."""

import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo import witness
from demo.examination import examine
from demo.screen import Screen
from demo.work import AGENT, LINTER, PAGES, SHARDS, TESTS, Work
from tests.helpers.support import PATIENCE, eventually, optional_program
from workers.chromium.pool import NAMES

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "demo"]
#: Seconds until a demo is at work: it makes its servers' data on the disk, then starts one process after another.
START_PATIENCE = 2 * PATIENCE
#: Seconds that a demo may take on a machine so busy that it needs all of its bursts.
LONGEST = 300
pytestmark = pytest.mark.timeout(LONGEST + START_PATIENCE + 60)

URLS = {"HOWL_REDIS_URL": "redis", "HOWL_NATS_URL": "nats", "HOWL_DATABASE_URL": "postgresql", "NATS_URL": "nats",
        "CELERY_BROKER_URL": "redis", "BROKER_URL": "redis", "REDIS_URL": "redis", "DATABASE_URL": "postgresql",
        "HTTP_PROXY": "http", "http_proxy": "http", "ALL_PROXY": "http"}  # fmt: skip
HOSTS = ("MANAGER_HOST", "REDIS_HOST", "NATS_HOST", "POSTGRES_HOST", "PGHOST", "PGHOSTADDR", "HOWL_REDIS_HOST")
PORTS = ("REDIS_PORT", "NATS_PORT", "POSTGRES_PORT", "PGPORT")


class Canary:
    """A listener that nobody may call."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Every name that could lead somebody here."""
        urls = {name: f"{scheme}://u:p@127.0.0.1:{self.port}/0" for name, scheme in URLS.items()}
        others = {"PGPASSWORD": "p", "POSTGRES_PASSWORD": "p", "GITHUB_ACTIONS": "true", "WORKER_ID": "canary"}
        return urls | dict.fromkeys(HOSTS, "127.0.0.1") | dict.fromkeys(PORTS, str(self.port)) | others

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:
                return  # closed
            with caller:
                caller.settimeout(1)
                try:
                    self.calls.append(caller.recv(1000))
                except OSError:
                    self.calls.append(b"")


@contextmanager
def canary() -> Iterator[Canary]:
    made = Canary()
    try:
        yield made
    finally:
        made.socket.shutdown(socket.SHUT_RDWR)
        made.socket.close()


@dataclass
class Run:
    """A demo among variables, and with an .env, that lead to a canary."""

    folder: Path
    canary: Canary
    #: Passed on to every process that descends from the demo, as a part of the locale.
    mark: str = field(default_factory=lambda: f"LC_MARK={secrets.token_hex(8)}")
    #: Processes seen at work, and how it ended.
    seen: list[str] = field(default_factory=list)
    status: int | None = None

    def __post_init__(self) -> None:
        told = self.canary.environment()
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
        name, _, value = self.mark.partition("=")
        with (self.folder / "output").open("wb") as output:
            self.popen = subprocess.Popen(
                DEMO, cwd=self.folder, env=os.environ | told | {name: value}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def home(self) -> str:
        """Its state folder."""
        found = re.search(r"State folder: (\S+)", self.output)
        assert found, self.output
        return found[1]

    def wait(self) -> int:
        self.status = self.popen.wait(LONGEST)
        return self.status

    def processes(self) -> list[str]:
        """What runs now and descends from it: by its environment, or for servers by the folder it runs in."""
        return [_read(entry / "cmdline") for entry in Path("/proc").glob("[1-9]*") if self._is_of_ours(entry)]

    def _is_of_ours(self, entry: Path) -> bool:
        return self.mark in _read(entry / "environ") or _folder(entry).startswith(self.home)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _folder(entry: Path) -> str:
    try:
        return str((entry / "cwd").readlink())
    except OSError:
        return ""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One demo from beginning to end, for all who look at it."""
    with canary() as listener:
        run = Run(tmp_path_factory.mktemp("demo"), listener)
        eventually(lambda: "registered" in run.output or run.popen.poll() is not None, START_PATIENCE)
        run.seen = run.processes()
        run.wait()
        yield run


def test_every_check_of_the_demo_is_ok(demo: Run) -> None:
    assert demo.status == 0, demo.output
    assert "FAILED" not in demo.output
    assert int(re.search(r"All (\d+) checks are ok", demo.output)[1]) == demo.output.count("   ok  ") >= 13


def test_the_demo_runs_at_least_40_tasks_of_every_kind_and_calls_its_stand_in_one(demo: Run) -> None:
    assert int(re.search(r"(\d+) tasks submitted", demo.output)[1]) >= 40
    assert all(re.search(rf"[1-9]\d* {kind}", demo.output) for kind in (LINTER, TESTS, PAGES, AGENT))


def test_the_demo_ends_with_a_picture_where_there_is_a_browser(demo: Run) -> None:
    optional_program(*NAMES)
    path = re.search(r"browser saw: (\S+\.png)", demo.output)
    assert path is not None, demo.output
    assert Path(path[1]).stat().st_mtime > time.time() - 20 * 60
    assert not re.search(r"\bagent\b(?!( stand-in|\.run| counted|: that one is a stand-in))", demo.output)


def test_the_demo_calls_nobody_whom_its_environment_or_an_env_file_names(demo: Run) -> None:
    assert demo.canary.calls == []
    socket.create_connection(("127.0.0.1", demo.canary.port), timeout=5).close()
    eventually(lambda: demo.canary.calls)  # it would have noticed


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_demo_leaves_no_process_and_no_file(demo: Run) -> None:
    assert len(demo.seen) > 8, demo.seen  # three servers, howl server, mcp, burst, two workers: they are recognised
    assert demo.processes() == []
    assert not Path(demo.home).exists()
    assert sorted(path.name for path in demo.folder.iterdir()) == [".env", "output"]


def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with canary() as listener:
        run = Run(tmp_path, listener)
        eventually(lambda: "tasks submitted" in run.output or run.popen.poll() is not None, START_PATIENCE)
        run.popen.send_signal(signal.SIGTERM)  # which the demo makes a SIGINT
        assert run.wait() == 1
    assert "Aborted!" in run.output
    assert run.processes() == []
    assert not Path(run.home).exists()


def test_the_tests_call_nobody_whom_their_environment_names() -> None:
    with canary() as listener:
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/server/test_health.py"]
        done = subprocess.run(
            line, cwd=ROOT, env=os.environ | listener.environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout
        assert listener.calls == []


def test_the_shards_of_the_demo_start_no_servers() -> None:
    line = [sys.executable, "-m", "pytest", "--setup-plan", "-q", "-p", "no:cacheprovider"]
    plans = {
        shards: subprocess.run([*line, *shards], cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
        for shards in (SHARDS, ("tests/server/test_health.py",))
    }
    assert [re.search(r"SETUP +[A-Z] (calm_)?stack\b", plan) is None for plan in plans.values()] == [True, False]


# --- it would notice ---------------------------------------------------------------------------------------------

DIGEST = hashlib.sha256(b"nonce").hexdigest()
WORK = {
    "c": Work(LINTER, "ruff check", "submit_task", {}, DIGEST),
    "p": Work(PAGES, "http://page", "submit_task", {}, DIGEST),
}


def _reports(digest: str = DIGEST, pid: int = 7, status: str = "succeeded", exit_status: int = 0) -> dict[str, Any]:
    testimony = json.dumps({"nonce_sha256": digest, "pid": pid})
    common = {"status": status, "error_message": None, "events": [{"kind": "started", "data": {"pid": pid}}]}
    command = {"stdout": f"{testimony}\nfine", "exit_status": exit_status, "pid": pid}
    page = {"title": "a page", "status": 200, "size": 9, "sha256": digest}
    return {"c": common | {"result": command}, "p": common | {"result": page}}


def _checks(**off: Any) -> list[bool]:
    screen = Screen()
    examine(WORK, _reports(**off), screen)
    return screen.checks


def test_answers_as_they_should_be_pass() -> None:
    assert _checks() == [True, True, True, True]


@pytest.mark.parametrize(
    ("off", "noticed_by"),
    [
        ({"status": "failed"}, 0),
        ({"digest": "0" * 64}, 1),
        ({"pid": os.getpid()}, 2),
        ({"exit_status": 1}, 3),
    ],
    ids=["a failed task", "another digest", "the demo's own process", "a linter's finding"],
)
def test_an_answer_that_is_off_fails_its_check(off: dict[str, Any], noticed_by: int) -> None:
    assert _checks(**off)[noticed_by] is False


def test_one_failed_check_makes_the_verdict_a_failure() -> None:
    screen = Screen()
    screen.check("this", True)
    assert screen.verdict()
    screen.check("that", False)
    assert not screen.verdict()


def test_a_witness_becomes_its_program_in_the_same_process_with_its_exit_status(tmp_path: Path) -> None:
    (tmp_path / "nonce").write_text("nonce")
    program = [sys.executable, "-c", "import os; print(os.getpid()); raise SystemExit(3)"]
    line = [sys.executable, "-I", witness.__file__, str(tmp_path / "nonce"), *program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
    testimony, pid = done.stdout.splitlines()
    assert json.loads(testimony) == {"nonce_sha256": DIGEST, "pid": int(pid)}
    assert done.returncode == 3


ORPHAN = """
import subprocess, time
from demo import processes
processes.adopt_orphans()
processes.LAST_PATIENCE = 1.0
subprocess.run(["sh", "-c", "setsid sleep 54321 & true"], check=True)
while "sleep 54321" not in map(processes._title, processes._children()):
    time.sleep(0.05)  # it is a shell and setsid before
print(processes.end_leftovers(), processes.end_leftovers())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to a chosen ancestor")
def test_a_process_left_by_a_dead_child_is_found_named_and_ended() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "['sleep 54321'] []"
