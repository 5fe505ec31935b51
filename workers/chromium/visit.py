"""The request to a browser and its answer: a visit and a sight."""

from collections.abc import Sequence
from typing import TypedDict

from howl.errors import InvalidRequest
from workers import addresses
from workers.process.spec import check_timeout

#: Pixels of a viewport, by default and at most; most seconds of a visit; most characters of a selector.
DEFAULT_VIEWPORT = (1280, 720)
LARGEST_VIEWPORT = (4_096, 4_096)
LONGEST_TIMEOUT = 600.0
LONGEST_SELECTOR = 1_000


class Visit(TypedDict):
    """A request to visit a page: the viewport is in pixels, the timeout in seconds."""

    url: str
    viewport: Sequence[int]
    wait_for: str | None
    picture: bool
    full_page: bool
    timeout: float
    allow_private: bool


class Sight(TypedDict):
    """The answer: the final URL, its status, and the text and links there; truncated says whether there were more."""

    url: str
    status: int
    title: str
    text: str
    links: list[dict[str, str]]
    truncated: bool


def check(wanted: Visit) -> Visit:
    """Return the visit if a browser can make it; raises InvalidRequest, AddressRefused."""
    if not isinstance(wanted["url"], str):
        raise InvalidRequest("url must be a text.")
    addresses.parse(wanted["url"])
    check_timeout(wanted["timeout"])
    if wanted["timeout"] is None or wanted["timeout"] > LONGEST_TIMEOUT:
        raise InvalidRequest(f"timeout must be a number of seconds above 0, up to {LONGEST_TIMEOUT:g}.")
    if not isinstance(wanted["full_page"], bool):
        raise InvalidRequest("full_page must be true or false.")
    _check_viewport(wanted["viewport"])
    _check_selector(wanted["wait_for"])
    return wanted


def _check_viewport(viewport: object) -> None:
    fits = isinstance(viewport, list | tuple) and len(viewport) == len(LARGEST_VIEWPORT)
    if not (fits and all(map(_is_length, viewport, LARGEST_VIEWPORT))):  # type: ignore[call-overload]  # it fits
        width, height = LARGEST_VIEWPORT
        raise InvalidRequest(f"viewport must be [width, height] in pixels, at most [{width}, {height}].")


def _is_length(value: object, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _check_selector(selector: object) -> None:
    if selector is not None and not (isinstance(selector, str) and 0 < len(selector) <= LONGEST_SELECTOR):
        raise InvalidRequest(f"wait_for must be a selector of at most {LONGEST_SELECTOR} characters.")
