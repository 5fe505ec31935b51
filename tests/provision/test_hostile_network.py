"""Whoever can reach the ports of a server: scanners, idlers, and those who ask and never read. Work goes on."""

import asyncio
import json
import random
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import nats
import pytest
import redis

from howl.config import load_settings
from howl.connections import tls
from howl.connections.redis import redis_client
from howl.embedded.server import free_port
from howl.embedded.stack import Stack
from tests.helpers.person import Person
from tests.helpers.servers import HOST, Server, ready, serving
from tests.helpers.support import Process, eventually

pytestmark = pytest.mark.servers

Start = Callable[..., Process]
MIB = 1 << 20


@pytest.fixture
def worker(server: Server, howl_server: Process, start: Start) -> Process:
    """One that knows HOWL_JOIN alone."""
    return ready(start("worker", "--name", "far-away", "--pool", "solo", env=server.worker_env()))


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Connections that stay open to the test's end."""
    with ExitStack() as opened:
        yield opened


def connect(sockets: ExitStack, port: int) -> socket.socket:
    return sockets.enter_context(socket.create_connection((HOST, port), 10))


def shake_hands(server: Server, sockets: ExitStack, port: int) -> ssl.SSLSocket:
    context = tls.context(server.folder.ca.read_text())
    return sockets.enter_context(context.wrap_socket(connect(sockets, port), server_hostname=HOST))


# --- scanners -------------------------------------------------------------------------------------------------------


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


WORDS = {
    "nothing": b"",
    "noise": random.Random(4).randbytes(20_000),  # noqa: S311  # no secret, and the same each time
    "HTTP": b"GET / HTTP/1.1\r\nHost: my.server\r\n\r\n",
    "half a handshake": client_hello()[:100],
    "a handshake's beginning": client_hello(),
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "endless Redis": b"*2147483647\r\n$536870912\r\n" + b"x" * 20_000,
    "NATS": b'CONNECT {"verbose":true}\r\nPING\r\nSUB > 1\r\n',
    "PostgreSQL": bytes.fromhex("0000000804d2162f") + b"\x00" * 64,
    "SSH": b"SSH-2.0-scanner\r\n",
}


def say(connection: socket.socket, words: bytes) -> None:
    with suppress(OSError):  # it may have been sent away already
        connection.sendall(words)


def test_a_scanner_s_words_on_every_port_disturb_nobody(
    server: Server, stack: Stack, worker: Process, person: Person, sockets: ExitStack
):
    for words in WORDS.values():
        for port in (server.redis_port, server.nats_port, stack.postgres.port):
            say(connect(sockets, port), words)
            closed_by_half = connect(sockets, port)
            say(closed_by_half, words)
            with suppress(OSError):  # it may have been sent away already
                closed_by_half.shutdown(socket.SHUT_WR)
        for port in (server.redis_port, server.nats_port):
            say(shake_hands(server, sockets, port), words)
    person.sees_work_done()
    assert worker.popen.poll() is None
    assert server.pid("redis")
    assert server.pid("nats")


# --- idlers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this machine allows {hard} open files, and the test needs 4096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files", "howl_server")
def test_a_worker_registers_and_works_beside_a_thousand_idle_connections(
    server: Server, person: Person, start: Start, sockets: ExitStack
):
    idle = {port: _idle(server, sockets, port) for port in (server.redis_port, server.nats_port)}
    ready(start("worker", "--name", "late-comer", "--pool", "solo", env=server.worker_env()))
    person.sees_work_done()
    assert eventually(lambda: person.worker("late-comer")) == "active"
    assert not [connection for connection in idle[server.redis_port] if is_closed(connection)]
    # NATS sends away who does not log in within a few seconds.
    eventually(lambda: all(is_closed(connection) for connection in idle[server.nats_port]))


def _idle(server: Server, sockets: ExitStack, port: int) -> list[socket.socket]:
    """Half of them have shaken hands, and none logs in."""
    silent = [connect(sockets, port) for _ in range(500)]
    return [*silent, *(shake_hands(server, sockets, port) for _ in range(500))]


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.001)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_who_is_sent_away_for_idling_comes_back_by_himself(
    server: Server, start: Start, person: Person, monkeypatch: pytest.MonkeyPatch
):
    """A worker and a server whose connections Redis closes after a second of silence."""
    port = free_port()
    server.start_redis(port, timeout="1")
    server_env = server.env(REDIS_PORT=str(port))
    serving(start("server", env=server_env))
    there = server.worker_env(MANAGER_HOST=HOST, REDIS_PORT=str(port))  # as where a tunnel ends
    worker = ready(start("worker", "--name", "sleepy", "--pool", "solo", env=there))
    monkeypatch.setenv("MANAGER_HOST", HOST)
    monkeypatch.setenv("REDIS_PORT", str(port))
    here = Person(server, person.settings.database())
    for _ in range(2):
        here.sees_work_done()
        time.sleep(2.5)  # longer than the silence that Redis bears, as it looks about once a second
    here.sees_work_done()
    assert worker.popen.poll() is None


# --- those who never read -------------------------------------------------------------------------------------------


def peak_memory(pid: int) -> int:
    """Most bytes that the process ever had in memory."""
    status = Path("/proc", str(pid), "status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def test_who_asks_redis_for_much_and_never_reads_is_sent_away(
    server: Server, worker: Process, person: Person, sockets: ExitStack
):
    settings, size, askers = load_settings(join=server.join()), 8 * MIB, 16
    key = settings.key("large")
    with redis_client(settings) as client:
        client.set(key, b"x" * size)
        connections = [client.connection_pool.make_connection() for _ in range(askers)]
        for connection in connections:
            sockets.callback(connection.disconnect)
            connection.connect()
            with suppress(redis.RedisError):
                connection.send_packed_command(connection.pack_command("GET", key) * 6)
    person.sees_work_done()
    assert peak_memory(server.pid("redis")) < 400 * MIB  # and not the 768 that were asked for
    assert worker.popen.poll() is None
    with redis_client(person.settings) as client:
        client.delete(key)


def test_a_worker_s_nats_connection_that_never_reads_is_sent_away(
    server: Server, worker: Process, person: Person, sockets: ExitStack
):
    deaf = log_in(server, sockets)
    say(deaf, b"SUB howl.inbox.worker.> 1\r\nPING\r\n")
    before = peak_memory(server.pid("nats"))
    asyncio.run(_tell_much(person, "howl.inbox.worker.deaf", 300))
    assert peak_memory(server.pid("nats")) - before < 150 * MIB  # and not the 300 that were said
    eventually(lambda: is_closed(deaf))
    person.sees_work_done()
    assert person.worker("far-away") == "active"


def log_in(server: Server, sockets: ExitStack) -> ssl.SSLSocket:
    """A worker's credential, on a connection that takes little from the network and reads nothing more."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect((HOST, server.nats_port))
    context = tls.context(server.folder.ca.read_text())
    connection = sockets.enter_context(context.wrap_socket(plain, server_hostname=HOST))
    told = {"user": "worker", "pass": server.folder.existing().passwords["worker"], "verbose": False}
    say(connection, f"CONNECT {json.dumps(told)}\r\n".encode())
    return connection


async def _tell_much(person: Person, subject: str, megabytes: int) -> None:
    client = await nats.connect(person.settings.nats(), connect_timeout=5, **tls.nats_options(person.settings))
    try:
        for _ in range(megabytes):
            await client.publish(subject, b"x" * (MIB - 1000))
            await client.flush(10)
    finally:
        await client.close()


def test_a_worker_s_nats_connection_has_a_limit_of_subscriptions(server: Server, sockets: ExitStack):
    greedy = log_in(server, sockets)
    say(greedy, b"".join(f"SUB howl.inbox.worker.{at} {at}\r\n".encode() for at in range(200)))
    heard = b""
    deadline = time.monotonic() + 10
    while b"-ERR" not in heard and time.monotonic() < deadline:
        heard += greedy.recv(4096)
    assert b"maximum subscriptions exceeded" in heard.lower()
