"""The task that fetches a web page."""

import asyncio
import hashlib
import math
import ssl
import time
import zlib
from contextlib import aclosing
from functools import cache
from typing import TypedDict

import httpx
from celery import shared_task

from howl.errors import FetchFailed, InvalidRequest
from howl.worker.task import time_limits
from workers import addresses
from workers.checkout.permissions import settings
from workers.chromium import page

#: Most bytes of a body that a task may ask for, and most seconds it may take.
LARGEST_LIMIT = 10_000_000
LONGEST_TIMEOUT = 600.0

REDIRECTS = 5
CONNECT_TIMEOUT = 10.0
REQUEST_HEADERS = {"User-Agent": "howl-worker", "Accept": "*/*", "Accept-Encoding": "gzip", "Connection": "close"}

#: Most bytes of a body that are read as text, and most characters of it that are returned, as are those of a title.
TEXT_LIMIT = 500_000
EXCERPT_LIMIT = 4_000
TITLE_LIMIT = 300

#: Most headers returned, and most characters of each.
HEADERS_LIMIT = 64
HEADER_LIMIT = 1_000

#: Codecs that Python counts as text but that no page is written in; decoding punycode takes quadratic time.
NOT_FOR_PAGES = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})


class Page(TypedDict):
    """A fetched page: size in bytes of the body that was read and digested, duration in seconds."""

    url: str
    status: int
    headers: dict[str, str]
    title: str
    excerpt: str
    sha256: str
    size: int
    truncated: bool
    duration: float


@shared_task(name="web.fetch")
def fetch(url: str, *, limit: int = 1_000_000, timeout: float = 30.0) -> Page:
    """Fetch a page from a worker and return its status, headers, title, text and digest.

    url: an http or https URL without credentials.
    limit: bytes of the unpacked body to read at most, up to 10,000,000.
    timeout: seconds for everything together, up to 600.

    The answer holds url (where at most 5 redirects led), status, headers (names in lower case), title, excerpt (the
    first 4,000 characters of readable text), sha256 and size of the body as far as it was read, truncated (whether the
    body went on), and duration in seconds. A status such as 404 is an answer, not an error.

    Private, loopback, link-local and other addresses that are not public are refused, on each redirect too, unless the
    worker's owner set HOWL_WEB_ALLOW_PRIVATE=1. Proxy variables are not used.

    Errors: AddressRefused, FetchFailed (no answer, not in time, not as HTTP prescribes), InvalidRequest.
    """
    _check(url, limit, timeout)
    started = time.monotonic()
    try:
        found = asyncio.run(time_limits.within(asyncio.wait_for(_follow(addresses.parse(url), limit), timeout)))
    except TimeoutError:
        raise FetchFailed(f"The page was not there after {timeout:g} s, the time it was given.") from None
    except httpx.HTTPError as error:
        raise FetchFailed(f"The page could not be fetched: {error or type(error).__name__}.") from None
    found["duration"] = round(time.monotonic() - started, 3)
    return found


async def _follow(url: httpx.URL, limit: int) -> Page:
    for _ in range(REDIRECTS + 1):
        # One transport per hop: two names with the same address must never share a connection.
        async with httpx.AsyncHTTPTransport(verify=_trusted(), trust_env=False) as transport:
            async with aclosing(await _send(transport, url)) as response:
                if not response.has_redirect_location:
                    return _page(url, response, *await _read(response, limit))
                url = addresses.parse(str(_target(url, response)))
    raise FetchFailed(f"The page was still redirecting after {REDIRECTS} redirects.")


async def _send(transport: httpx.AsyncHTTPTransport, url: httpx.URL) -> httpx.Response:
    """Request a page from the first of its addresses that accepts a connection."""
    found = await addresses.resolve(url, settings().web_allow_private)
    for address in found[:-1]:
        try:
            return await transport.handle_async_request(_request(url, address))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue  # an error of the last address is raised
    return await transport.handle_async_request(_request(url, found[-1]))


def _request(url: httpx.URL, address: str) -> httpx.Request:
    """Build a request to this very address that still names the host, to the server and to TLS."""
    return httpx.Request(
        "GET",
        url.copy_with(host=address),
        headers={"Host": url.netloc.decode("ascii"), **REQUEST_HEADERS},
        extensions={"sni_hostname": url.raw_host.decode("ascii"), "timeout": {"connect": CONNECT_TIMEOUT}},
    )


def _target(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    try:
        return url.join(response.headers["location"])
    except httpx.InvalidURL as error:
        raise FetchFailed(f"The page redirects to a URL that cannot be read: {error}.") from None


async def _read(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """Return the unpacked body within the limit, and whether it went on; a small packed body cannot become large."""
    unpack = _unpacker(response)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += _unpack(unpack, chunk, limit + 1 - len(body)) if unpack else chunk
        if len(body) > limit or (unpack and unpack.eof):
            break
    return bytes(body[:limit]), len(body) > limit


def _unpacker(response: httpx.Response) -> "zlib._Decompress | None":
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    raise FetchFailed(f"The page came in the content encoding {encoding[:20]!r}, which was not asked for.")


def _unpack(unpack: "zlib._Decompress", chunk: bytes, room: int) -> bytes:
    try:
        return unpack.decompress(chunk, room)
    except zlib.error:
        raise FetchFailed("The page's body is not the gzip data it claims to be.") from None


def _page(url: httpx.URL, response: httpx.Response, body: bytes, truncated: bool) -> Page:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    markup = _decode(body[:TEXT_LIMIT], response.charset_encoding) if _is_text(kind) else ""
    is_page = kind in ("text/html", "application/xhtml+xml")
    return {
        "url": str(url),
        "status": response.status_code,
        "headers": {name: value[:HEADER_LIMIT] for name, value in list(response.headers.items())[:HEADERS_LIMIT]},
        "title": page.title(markup)[:TITLE_LIMIT] if is_page else "",
        "excerpt": (page.text(markup) if is_page else markup)[:EXCERPT_LIMIT],
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(body),
        "truncated": truncated,
        "duration": 0.0,
    }


def _is_text(kind: str) -> bool:
    return kind.startswith("text/") or kind.endswith(("json", "xml"))


def _decode(body: bytes, charset: str | None) -> str:
    name = (charset or "utf-8").lower().replace("-", "_")
    try:
        return body.decode("utf-8" if name in NOT_FOR_PAGES else name, "replace")
    except (LookupError, ValueError):
        return body.decode("utf-8", "replace")


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _check(url: object, limit: object, timeout: object) -> None:
    if not isinstance(url, str):
        raise InvalidRequest("url must be a text.")
    if not isinstance(limit, int) or not 0 < limit <= LARGEST_LIMIT:
        raise InvalidRequest(f"limit must be a number of bytes from 1 to {LARGEST_LIMIT}.")
    if not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST_TIMEOUT or math.isnan(timeout):
        raise InvalidRequest(f"timeout must be a number of seconds above 0, up to {LONGEST_TIMEOUT:g}.")
