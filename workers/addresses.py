"""Which URLs a worker may fetch, and the very addresses it then connects to."""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx

from howl.errors import AddressRefused, FetchFailed

#: Addresses of one name that are tried, in the resolver's order.
TRIED = 3
#: Where Azure, and so each of GitHub's runners, finds its own machine's secrets under a public address.
INSIDE_CLOUDS = frozenset({"168.63.129.16"})


def parse(url: str) -> httpx.URL:
    """The URL of a page on the web; raises AddressRefused for any other, and never repeats its secrets."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise AddressRefused(f"The URL cannot be read: {error}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise AddressRefused("Only http:// and https:// URLs with a host are fetched.")
    if parsed.userinfo:
        raise AddressRefused("The URL holds credentials, which would be stored with the task: leave them out.")
    if not 0 < port_of(parsed) < 1 << 16:
        raise AddressRefused("The URL's port is not between 1 and 65535.")
    return parsed


async def resolve(url: httpx.URL, allow_private: bool) -> list[str]:
    """The addresses of a URL's host, asked for once; raises AddressRefused when any of them is not public.

    Connecting to these, not to the name again, leaves a name server no second answer to give (DNS rebinding).
    """
    return await resolve_host(url.host, port_of(url), allow_private)


async def resolve_host(host: str, port: int, allow_private: bool) -> list[str]:
    """As resolve(), of a host without a URL."""
    addresses = await _look_up(host, port)
    if not allow_private and not all(map(is_public, addresses)):
        raise AddressRefused(
            f"{host} has a private, loopback or otherwise not public address: such are fetched only by workers "
            "whose owner set HOWL_WEB_ALLOW_PRIVATE=1."
        )
    return addresses[:TRIED]


def is_public(address: str) -> bool:
    """Whether this is an address of the public internet, and does not stand for another one (6to4, mapped, NAT64)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.is_site_local or ip.sixtofour or ip.teredo or ip.ipv4_mapped):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and address not in INSIDE_CLOUDS


def port_of(url: httpx.URL) -> int:
    """The port a URL leads to, the scheme's own included."""
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


async def _look_up(host: str, port: int) -> list[str]:
    # A thread of its own: the resolver cannot be interrupted, and a caller past its deadline must not wait for it.
    resolver = ThreadPoolExecutor(1, "resolver")
    try:
        found = await asyncio.get_running_loop().run_in_executor(
            resolver, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    except (OSError, UnicodeError):
        raise FetchFailed(f"The name {host} has no address.") from None
    finally:
        resolver.shutdown(wait=False)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
