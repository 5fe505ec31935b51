"""A stack of real servers: its life, its data, what it says when something is wrong."""

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from howl.embedded import server
from howl.embedded.account import postgres_account
from howl.embedded.stack import Stack
from howl.errors import EmbeddedServerError
from howl.files import take_lock
from howl.local_stack import running_stack
from tests.helpers import clients

pytestmark = pytest.mark.servers

SERVERS = ("redis", "nats", "postgres")


def test_the_next_stack_on_a_folder_finds_the_data_of_all_three_servers(home: Path) -> None:
    with Stack(home) as first:
        clients.write(first.urls)
    with Stack(home) as second:
        assert clients.read(second.urls) == ("kept", "kept", "kept")


def test_a_server_comes_back_on_its_port_with_its_data(stack: Stack) -> None:
    clients.write(stack.urls)
    for handle in (stack.redis, stack.nats, stack.postgres):
        handle.stop()
        handle.start()
    assert clients.read(stack.urls) == ("kept", "kept", "kept")


def test_a_stopped_server_is_unreachable_while_the_others_answer(stack: Stack) -> None:
    clients.write(stack.urls)
    stack.redis.stop()
    assert _refuses(clients.port_of(stack.urls.redis_url))
    assert clients.read_postgres(stack.urls.database_url) == "kept"


def test_a_server_stopped_on_purpose_is_no_failure(stack: Stack) -> None:
    stack.nats.stop()
    stack.check()


@pytest.mark.parametrize(("slug", "title"), [("redis", "Redis"), ("nats", "NATS"), ("postgres", "PostgreSQL")])
def test_a_killed_server_is_named_with_its_last_log_lines(stack: Stack, slug: str, title: str) -> None:
    handle: server.Server = getattr(stack, slug)
    os.kill(handle.pid, signal.SIGKILL)
    _eventually(lambda: _fails(stack.check))
    with pytest.raises(EmbeddedServerError, match=rf"(?is)^{title} stopped by itself .* ready"):
        stack.check()


def test_a_killed_server_can_be_started_again(stack: Stack) -> None:
    clients.write(stack.urls)
    os.kill(stack.postgres.pid, signal.SIGKILL)
    _eventually(lambda: _fails(stack.check))
    stack.postgres.start()
    assert clients.read_postgres(stack.urls.database_url) == "kept"


def test_a_second_stack_on_the_same_folder_is_refused_and_disturbs_nothing(calm_stack: Stack) -> None:
    clients.write(calm_stack.urls)
    with pytest.raises(EmbeddedServerError, match="Another `howl up` uses the state folder"):
        Stack(calm_stack.home).start()
    assert clients.read(calm_stack.urls) == ("kept", "kept", "kept")


def test_settings_find_a_stack_exactly_while_it_runs(home: Path) -> None:
    with Stack(home) as running:
        assert running_stack(home)["database_url"] == running.urls.database_url
    assert running_stack(home) == {}
    assert not (home / "running.json").exists()


def test_stopping_twice_is_stopping_once(stack: Stack) -> None:
    stack.stop()
    stack.stop()
    assert _nothing_lives(stack.home)


def test_a_port_that_somebody_takes_at_the_last_moment_is_exchanged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = server.free_port
    with socket.create_server(("127.0.0.1", 0)) as thief:
        stolen = thief.getsockname()[1]
        answers = iter([stolen, stolen, stolen])  # each server's first choice
        monkeypatch.setattr(server, "free_port", lambda: next(answers, None) or free_port())
        with Stack(home) as running:
            ports = {running.redis.port, running.nats.port, running.postgres.port}
    assert stolen not in ports
    assert next(answers, None) is None


def test_a_start_that_fails_shows_the_log_and_leaves_nothing_running(home: Path) -> None:
    with Stack(home):
        pass
    (home / "postgres" / "PG_VERSION").write_text("7\n")
    with pytest.raises(EmbeddedServerError, match=r"^PostgreSQL could not be started .*\n.*FATAL"):
        Stack(home).start()
    assert _nothing_lives(home)
    assert running_stack(home) == {}


def test_a_pid_file_that_names_a_living_stranger_does_not_stop_postgresql(home: Path) -> None:
    pid_file = home / "postgres" / "postmaster.pid"
    with Stack(home) as first:
        lines = pid_file.read_text().splitlines()
        clients.write(first.urls)
    with _stranger() as pid:
        pid_file.write_text("\n".join([str(pid), *lines[1:]]) + "\n")
        with Stack(home) as second:
            assert clients.read_postgres(second.urls.database_url) == "kept"


def test_what_an_interrupted_initdb_left_is_removed(new_home: Path) -> None:
    half_made = new_home / "postgres-new-half" / "data"
    half_made.mkdir(parents=True)
    new_home.chmod(0o711)
    (half_made / "PG_VERSION").write_text("18\n")
    with Stack(new_home):
        assert list(new_home.glob("postgres-new-*")) == []


def test_the_role_in_the_url_owns_its_database_and_may_clone_it_but_is_no_superuser(calm_stack: Stack) -> None:
    with psycopg.connect(calm_stack.urls.database_url, autocommit=True) as connection:
        assert clients.one(connection, "SELECT current_user || ' ' || current_database()") == "howl mcp_manager"
        assert clients.one(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "False"
        connection.execute("CREATE DATABASE template")
        connection.execute("CREATE DATABASE clone TEMPLATE template")


def test_passwords_are_in_no_command_line_and_no_log(calm_stack: Stack) -> None:
    passwords = _passwords(calm_stack)
    lines = {path.parent.name: _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    assert {str(calm_stack.redis.pid), str(calm_stack.nats.pid), str(calm_stack.postgres.pid)} <= lines.keys()
    logs = [path.read_bytes() for path in calm_stack.home.glob("*.log*")]
    assert len(logs) >= len(SERVERS)
    assert not [text for text in (*lines.values(), *logs) if any(password in text for password in passwords)]


def test_everything_in_the_state_folder_is_private(calm_stack: Stack) -> None:
    files = [path for path in calm_stack.home.iterdir() if path.is_file()]
    folders = [calm_stack.home / slug for slug in SERVERS]
    configurations = [calm_stack.home / "redis" / "valkey.conf", calm_stack.home / "nats" / "nats.conf"]
    assert {"passwords.json", "running.json", "lock"} <= {path.name for path in files}
    assert {_mode(path) for path in (*files, *configurations)} == {0o600}
    assert {_mode(path) for path in folders} == {0o700}


def test_servers_do_not_hold_the_lock_of_the_folder(calm_stack: Stack) -> None:
    held = {path.resolve() for slug in SERVERS for path in Path(f"/proc/{getattr(calm_stack, slug).pid}/fd").iterdir()}
    assert calm_stack.home / "redis.alive" in held
    assert calm_stack.home / "lock" not in held


def test_redis_refuses_a_client_without_its_password(calm_stack: Stack) -> None:
    with pytest.raises(redis.AuthenticationError):
        clients.read_redis(f"redis://127.0.0.1:{calm_stack.redis.port}/0")


def test_nats_refuses_a_client_without_its_password(calm_stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", calm_stack.nats.port), timeout=10) as connection:
        connection.sendall(b"CONNECT {}\r\nPING\r\n")
        _, answer = connection.makefile("rb").readlines()
    assert answer == b"-ERR 'Authorization Violation'\r\n"


def test_postgresql_refuses_a_client_without_its_password(calm_stack: Stack) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no password supplied|password authentication failed"):
        clients.read_postgres(f"postgresql://howl@127.0.0.1:{calm_stack.postgres.port}/mcp_manager?passfile=")


@contextmanager
def _stranger() -> Iterator[int]:
    """The id of a process that has nothing to do with PostgreSQL, but belongs to the same user."""
    account = postgres_account()
    process = subprocess.Popen(["sleep", "60"], user=account.uid if account else None)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(10)


def _passwords(stack: Stack) -> list[bytes]:
    return [stack.redis.passwords[name].encode() for name in ("redis", "nats", "postgres", "howl")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # the process ended while we looked


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _nothing_lives(home: Path) -> bool:
    """Servers and all their descendants hold these locks."""
    for slug in SERVERS:
        take_lock(home / f"{slug}.alive", 0).close()
    return True


def _refuses(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) != 0


def _fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except EmbeddedServerError:
        return True
    return False


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_ports_of_the_last_time_are_kept_and_others_are_told_of(home: Path) -> None:
    def ports(stack: Stack) -> list[int]:
        return [stack.redis.port, stack.nats.port, stack.postgres.port]

    with Stack(home) as first:
        before = ports(first)
    assert (home / ".gitignore").read_text() == "*\n"
    with Stack(home) as second:
        assert (ports(second), second.has_moved) == (before, False)
    with socket.create_server(("127.0.0.1", before[0])), Stack(home) as third:
        assert ports(third)[0] != before[0]
        assert third.has_moved
