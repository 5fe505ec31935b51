"""Tasks that visit a page with a real browser: for a screenshot, or for its text and links."""

import struct
from typing import Any, NamedTuple, TypedDict

from celery import shared_task

from howl.worker.task.artifacts import artifact
from workers.checkout.permissions import settings
from workers.chromium import pool
from workers.chromium.visit import DEFAULT_VIEWPORT, Sight, Visit, check

NAME = "screenshot.png"
MEDIA_TYPE = "image/png"
#: Layout of a PNG up to its width and height (ISO 15948, 11.2.2).
SIZE = struct.Struct(">16x2I")


class Screenshot(TypedDict):
    """A screenshot of a page, its width and height in pixels, and the artifact that it became."""

    url: str
    status: int
    title: str
    width: int
    height: int
    artifact: dict[str, Any]


class Shot(NamedTuple):
    """A screenshot of a page, and what was read there."""

    png: bytes
    seen: Sight


@shared_task(name="browser.screenshot")
def screenshot(
    url: str,
    *,
    full_page: bool = False,
    viewport: list[int] | None = None,
    wait_for: str | None = None,
    timeout: float = 30.0,
) -> Screenshot:
    """Visit a page with a browser on a worker, and take a screenshot of it.

    url: an http or https URL without credentials.
    full_page: the whole page instead of what is in view, up to 4,096 x 10,000 pixels; beyond, it is cut off.
    viewport: [width, height] of what is in view, in pixels, up to [4096, 4096]; [1280, 720] when not given.
    wait_for: a CSS selector; the picture is taken when something visible matches it, else when the page has loaded.
    timeout: seconds for everything together, up to 600.

    The answer holds url (where redirects led), status, title, width and height in pixels, and artifact: name, media
    type, size and digest of the PNG, which is kept with the task. A status such as 404 is an answer, not an error.

    Private, loopback, link-local and other addresses that are not public are refused, in whatever a page asks for,
    unless the worker's owner set HOWL_WEB_ALLOW_PRIVATE=1; a page refused in part is shown without that part. A page
    begins without cookies, cannot download, open windows or answer dialogs, and may move 100 MB.

    Errors: AddressRefused, FetchFailed (no answer, not in time, crashed), InvalidRequest, BrowserFailed, NotConfigured
    (no browser on this worker).
    """
    shot = capture(url, full_page=full_page, viewport=viewport, wait_for=wait_for, timeout=timeout)
    width, height = SIZE.unpack_from(shot.png)
    return {
        "url": shot.seen["url"],
        "status": shot.seen["status"],
        "title": shot.seen["title"],
        "width": width,
        "height": height,
        "artifact": artifact(shot.png, NAME, MEDIA_TYPE),
    }


@shared_task(name="browser.page")
def page(url: str, *, wait_for: str | None = None, timeout: float = 30.0) -> Sight:
    """Visit a page with a browser on a worker, and return what can be read there after its scripts have run.

    url: an http or https URL without credentials.
    wait_for: a CSS selector; the page is read when something visible matches it, else when it has loaded.
    timeout: seconds for everything together, up to 600.

    The answer holds url (where redirects led), status, title, text (the first 30,000 characters of what a reader sees),
    links (the first 200, each a text and a url), and truncated (whether there was more). What a page may do, and which
    addresses are refused, is as with browser.screenshot; so are the errors.
    """
    return _look(url, wait_for=wait_for, timeout=timeout)[0]


def capture(
    url: str,
    *,
    full_page: bool = False,
    viewport: list[int] | None = None,
    wait_for: str | None = None,
    timeout: float = 30.0,
) -> Shot:
    """Take a screenshot without keeping it as an artifact; arguments and errors are those of screenshot()."""
    seen, png = _look(url, picture=True, full_page=full_page, viewport=viewport, wait_for=wait_for, timeout=timeout)
    return Shot(png, seen)


def _look(
    url: str,
    *,
    wait_for: str | None,
    timeout: float,
    picture: bool = False,
    full_page: bool = False,
    viewport: list[int] | None = None,
) -> tuple[Sight, bytes]:
    wanted: Visit = {
        "url": url,
        "viewport": DEFAULT_VIEWPORT if viewport is None else viewport,
        "wait_for": wait_for,
        "picture": picture,
        "full_page": full_page,
        "timeout": timeout,
        "allow_private": settings().web_allow_private,
    }
    return pool.look(check(wanted))
