"""Servers end with the process that started them, however it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from howl.embedded.process import Child
from howl.embedded.stack import Stack
from howl.errors import EmbeddedServerError
from howl.files import take_lock
from tests.helpers import clients, parent
from tests.helpers.support import PATIENCE

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death"),
]

SERVERS = ("redis", "nats", "postgres")

BUSY_QUERY = b"SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"
COUNT_BUSY = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT count(*) FROM gen%'"

#: A parent that waits for initdb, and after it for a test that comes late.
WITHOUT_END = """
import sys, time
from howl.embedded import cluster
from tests.helpers import parent
initdb = cluster._initdb
cluster._initdb = lambda *told: (initdb(*told), time.sleep(parent.PATIENCE))
parent.main(sys.argv[1])
"""


@pytest.mark.alone
def test_a_killed_parent_takes_all_servers_with_it_within_a_second(home: Path) -> None:
    with _parent(home) as (process, said):
        assert all(Path(f"/proc/{pid}").exists() for pid in said["pids"])
        process.kill()
        _assert_all_gone_within(home, 1.0)


@pytest.mark.alone
def test_even_a_busy_query_ends_when_the_parent_is_killed(home: Path) -> None:
    with _parent(home) as (process, said), _busy_query(said["urls"]["database_url"]):
        process.kill()
        _assert_all_gone_within(home, 1.0)


def test_a_stack_starts_at_once_after_its_predecessor_was_killed(home: Path) -> None:
    with _parent(home) as (process, _):
        process.kill()
    with Stack(home) as successor:
        clients.write(successor.urls)
        assert clients.read(successor.urls) == ("kept", "kept", "kept")


def test_a_parent_killed_during_initdb_leaves_nothing_that_hinders_the_next_start(new_home: Path) -> None:
    process = _start_parent(new_home, "-c", WITHOUT_END)
    try:
        _until(lambda: list(new_home.glob("postgres-new-*/data/PG_VERSION")), PATIENCE)
        assert not (new_home / "postgres").exists()
    finally:
        process.kill()
        process.communicate(timeout=10)
    with Stack(new_home) as successor:
        clients.write(successor.urls)
        assert list(new_home.glob("postgres-new-*")) == []


def test_a_child_whose_parent_died_between_fork_and_exec_does_not_go_on() -> None:
    code = "import signal; from howl.embedded.process import die_with; die_with({}, signal.SIGQUIT); print('went on')"
    somebody_else, me = os.getpid() + 1, os.getpid()
    assert _output(code.format(somebody_else)) == (1, "")
    assert _output(code.format(me)) == (0, "went on\n")


def test_ctrl_c_in_the_terminal_reaches_no_server(home: Path) -> None:
    with _parent(home) as (process, said):
        assert all(os.getsid(pid) != os.getsid(process.pid) for pid in said["pids"])


def test_a_server_is_only_started_from_the_main_thread(tmp_path: Path) -> None:
    raised: list[EmbeddedServerError] = []

    def start() -> None:
        try:
            Child(["/bin/true"], cwd=tmp_path, log=tmp_path / "log", alive=tmp_path / "alive")
        except EmbeddedServerError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(10)
    assert "main thread" in str(raised[0])


def test_a_child_that_ignores_signals_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howl.embedded.process.STOP_PATIENCE", 0.2)
    stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done"
    log = tmp_path / "child.log"
    child = Child(["/bin/sh", "-c", stubborn], cwd=tmp_path, log=log, alive=tmp_path / "alive")
    _until(lambda: "ready" in log.read_text(), 10)
    child.end(signal.SIGTERM)
    assert child.exit_status() == -signal.SIGKILL


@pytest.mark.parametrize("slug", SERVERS)
def test_a_server_left_behind_is_named_by_its_lock(home: Path, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howl.embedded.process.LOCK_PATIENCE", 0.1)
    with take_lock(home / f"{slug}.alive", 0):
        with pytest.raises(EmbeddedServerError, match=rf"still holds .*{slug}\.alive"):
            Stack(home).start()


def _start_parent(home: Path, *program: str) -> subprocess.Popen[str]:
    command = [sys.executable, *(program or ("-m", parent.__name__)), str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def _parent(home: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = _start_parent(home)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextmanager
def _busy_query(url: str) -> Iterator[None]:
    def run() -> None:
        try:
            with psycopg.connect(url) as connection:
                connection.execute(BUSY_QUERY)
        except psycopg.OperationalError:
            ended.set()  # what the test is about

    ended = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    with psycopg.connect(url, autocommit=True) as connection:
        _until(lambda: clients.one(connection, COUNT_BUSY) != "0", 10)
    yield
    assert ended.wait(10)


def _assert_all_gone_within(home: Path, seconds: float) -> None:
    """Servers and all their descendants hold these locks."""
    deadline = time.monotonic() + seconds
    for slug in SERVERS:
        take_lock(home / f"{slug}.alive", max(0.0, deadline - time.monotonic())).close()


def _output(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stdout


def _until(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
