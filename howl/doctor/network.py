"""Checks of the way to a server: its name, its port, its certificate."""

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from howl.connections.tls import context
from howl.doctor.finding import Answer, beware, well
from howl.doctor.visit import Step, Visit

#: Days before its expiry by which a certificate should have been renewed.
EXPIRES_SOON = 21
ENCRYPTED = ("rediss", "tls")


async def name_is_known(visit: Visit) -> Answer | None:
    """Resolve the name by DNS; an address needs no check."""
    visit.addresses = [visit.host]
    if _is_address(visit.host):
        return None
    visit.addresses = await _resolve(visit.host)
    return well(f"{visit.host} is {', '.join(visit.addresses)}")


async def port_is_open(visit: Visit) -> Answer:
    """Connect by TCP to the first address that answers."""
    began = time.perf_counter()
    error: OSError | None = None
    for address in visit.addresses:
        try:
            with await _connect(address, visit.port):
                visit.addresses = [address]
                return well(f"port {visit.port} answers in {(time.perf_counter() - began) * 1000:.0f} ms")
        except OSError as refused:
            error = refused
    raise error or OSError("the name leads to no address")


async def certificate_is_good(visit: Visit) -> Answer | None:
    """Do a TLS handshake as all our clients do: the certificate must be trusted, for this name, and not expire soon."""
    if visit.scheme not in ENCRYPTED:
        return (
            None if visit.is_here else beware("nothing is encrypted", "use HOWL_JOIN, or HOWL_TLS=1 and HOWL_CA_FILE")
        )
    with await _connect(visit.addresses[0], visit.port) as connection:
        session = await _shake_hands(connection, context(visit.settings.ca), visit.host)
    shown = session.getpeercert() or {}
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    return judge_expiry(end, session.version() or "TLS")


async def _connect(address: str, port: int) -> socket.socket:
    """Return a bare socket, which only needs closing, whenever the time is over."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


async def _shake_hands(connection: socket.socket, trusted: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Return a TLS session after the handshake; raises ssl.SSLError or OSError."""
    loop, incoming, outgoing = asyncio.get_running_loop(), ssl.MemoryBIO(), ssl.MemoryBIO()
    session = trusted.wrap_bio(incoming, outgoing, server_hostname=name)
    while True:
        try:
            session.do_handshake()
        except ssl.SSLWantReadError:
            await loop.sock_sendall(connection, outgoing.read())
            heard = await loop.sock_recv(connection, 1 << 14)
            if not heard:
                raise ConnectionResetError("the connection was closed during the TLS handshake") from None
            incoming.write(heard)
        else:
            await loop.sock_sendall(connection, outgoing.read())
            return session


def judge_expiry(end: datetime, version: str) -> Answer:
    """Judge a certificate that is valid now by its expiry."""
    days = (end - datetime.now(UTC)).days
    said = f"{version}, certificate valid until {end:%Y-%m-%d} ({days} days)"
    if days < EXPIRES_SOON:
        return beware(said, "renew it: run `howl init` on the server, then restart its Redis and NATS")
    return well(said)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _resolve(host: str) -> list[str]:
    """Resolve in a thread that nobody joins: a resolver may take half a minute, and cannot be cancelled."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            _tell(loop, answer, addresses=list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:  # the latter if it cannot be a name
            _tell(loop, answer, error=error)

    threading.Thread(target=ask, daemon=True, name="howl-doctor-dns").start()
    return await answer


def _tell(
    loop: asyncio.AbstractEventLoop,
    answer: "asyncio.Future[list[str]]",
    addresses: list[str] | None = None,
    error: Exception | None = None,
) -> None:
    def tell() -> None:
        if answer.done():
            return  # nobody waits any more
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses or [])

    with suppress(RuntimeError):  # the loop is closed: likewise
        loop.call_soon_threadsafe(tell)


#: Checks of the way to any server.
WAY = (
    Step("dns", name_is_known, "check the spelling of the address, and this machine's DNS", vital=True),
    Step("tcp", port_is_open, "check address and port, that the server runs, and the firewalls between", vital=True),
    Step("tls", certificate_is_good, "check the port: what listens there is not HOWL's server", vital=True),
)
