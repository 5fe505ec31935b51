"""Checks of the URLs that a worker may fetch, and of the very addresses it then connects to."""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx

from howl.errors import AddressRefused, FetchFailed

#: Most addresses of one name that are tried, in the resolver's order.
TRIED = 3
#: IPv4 networks outside the public internet, by IANA's registry of special-purpose addresses as of November 2026; the
#: lists in `ipaddress` differ between Python versions. https://www.iana.org/assignments/iana-ipv4-special-registry
SPECIAL_4 = tuple(map(ipaddress.IPv4Network, (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared behind a provider's NAT; clouds keep services there
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # not in the registry; here Azure, and so each of GitHub's runners, serves a machine's secrets
    "169.254.0.0/16",  # link-local; here most clouds serve a machine's secrets
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments; here one cloud serves a machine's secrets
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays, deprecated
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)))  # fmt: skip
#: All that IANA has assigned for public use; outside are loopback, mapped and translated (NAT64) IPv4, discard-only,
#: unique local, link-local, site-local, multicast. https://www.iana.org/assignments/iana-ipv6-special-registry
PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_6 = tuple(map(ipaddress.IPv6Network, (
    "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID, DRIP; no websites
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4, which embeds an IPv4 address
    "3ffe::/16",  # 6bone, returned
    "3fff::/20",  # documentation
)))  # fmt: skip


def parse(url: str) -> httpx.URL:
    """Parse the URL of a web page; raises AddressRefused for any other, without repeating its credentials."""
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
    """Resolve the host of a URL once, and return its addresses; raises AddressRefused if any is not public.

    Connecting to these, not to the name again, gives a name server no chance of a second answer (DNS rebinding).
    """
    return await resolve_host(url.host, port_of(url), allow_private)


async def resolve_host(host: str, port: int, allow_private: bool) -> list[str]:
    """Resolve a host as resolve() does that of a URL."""
    addresses = await _look_up(host, port)
    if not allow_private and not all(map(is_public, addresses)):
        raise AddressRefused(
            f"{host} has a private, loopback or otherwise not public address: such are fetched only by workers "
            "whose owner set HOWL_WEB_ALLOW_PRIVATE=1."
        )
    return addresses[:TRIED]


def is_public(address: str) -> bool:
    """Return whether this is an address of the public internet that does not embed another (6to4, mapped, NAT64)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_4)
    if ip.scope_id is not None:  # valid on one interface of a machine only
        return False
    return ip in PUBLIC_6 and not any(ip in network for network in SPECIAL_6)


def port_of(url: httpx.URL) -> int:
    """Return the port of a URL, by default that of its scheme."""
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
