"""One visit of one page in a browser: navigate, wait, read, take a picture, or say clearly what went wrong."""

import re
from typing import Any

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Request, Response

from howl.errors import FetchFailed, HowlError, InvalidRequest
from workers import addresses
from workers.chromium.socks_proxy import PAGE_BYTES, Gate
from workers.chromium.visit import Sight, Visit

#: Most pixels of a whole page's picture (above 16,384, Chromium repeats content), and most bytes of any picture.
WIDEST, HIGHEST = 4_096, 10_000
LARGEST_PICTURE = 50_000_000

#: Most UTF-16 characters of what is read. Even if JSON takes six for each, it stays below HOWL_OUTCOME_LIMIT (1 MiB).
TITLE, TEXT, LINKS, LINK_TEXT, LINK_URL = 300, 30_000, 200, 100, 500

#: Attempts to read a page that navigates away meanwhile.
ATTEMPTS = 3

#: The script that reads a page, in an isolated world where the page has replaced nothing. A form named `title` still
#: hides the title, so every value is converted to a text first.
READ = """(() => {
    const cut = (value, length) => String(value ?? "").slice(0, length).toWellFormed();
    const line = (value, length) => cut(cut(value, 4 * length).replace(/\\s+/g, " ").trim(), length);
    const text = String(document.body?.innerText ?? "");
    const links = [];
    for (const link of document.querySelectorAll("a[href]")) {
        if (links.length === LINKS) break;
        const url = String(link.href);
        if (/^https?:/.test(url) && url.length <= LINK_URL) links.push({text: line(link.innerText, LINK_TEXT), url});
    }
    return {
        title: line(document.title, TITLE), text: cut(text, TEXT), links,
        truncated: text.length > TEXT || links.length === LINKS,
    };
})()"""
LIMITS = {"LINK_TEXT": LINK_TEXT, "LINK_URL": LINK_URL, "LINKS": LINKS, "TITLE": TITLE, "TEXT": TEXT}
EXPRESSION = re.sub("|".join(rf"\b{name}\b" for name in LIMITS), lambda name: str(LIMITS[name[0]]), READ)

NETWORK_ERROR = re.compile(r"net::(ERR_\w+)")


class Glance:
    """A visit of one page."""

    def __init__(self, gate: Gate, wanted: Visit) -> None:
        self.gate = gate
        self.wanted = wanted
        #: What is under way, for the error if time runs out; the URL of the last navigation; and the status of its
        #: response, 0 for none.
        self.doing = "The browser was not ready"
        self.going = wanted["url"]
        self.status = 0

    async def at(self, page: Page) -> tuple[Sight, bytes]:
        """Visit the page, and return what is read and its picture; raises HowlError, PlaywrightError."""
        page.on("request", lambda request: self._note_request(page, request))
        page.on("response", lambda response: self._note_response(page, response))
        await self._arrive(page)
        self.doing = "The page was loaded, and could not be read"
        seen = await self._read(page)
        picture = await self._picture(page) if self.wanted["picture"] else b""
        self._check_end(page)
        seen |= {"url": page.url, "status": self.status}
        return seen, picture

    def explained(self, error: PlaywrightError) -> HowlError:
        """Turn Playwright's error into one sentence."""
        said = error.message
        if "crashed" in said:
            return FetchFailed("The page crashed, perhaps because it took too much memory.")
        if "Download is starting" in said:
            return FetchFailed("The URL leads to a file for downloading, not to a page: use web.fetch.")
        found = NETWORK_ERROR.search(said)
        why = f"the browser says {found[1]}" if found else said.partition("\n")[0][:200]
        return self.refusal() or FetchFailed(f"The page could not be fetched: {why}.")

    def refusal(self) -> HowlError | None:
        """Return why the gate refused the page's last navigation, or cut the page off; None if it did neither."""
        if self.gate.exhausted:
            return FetchFailed(f"The page, with all that belongs to it, is larger than {PAGE_BYTES:,} bytes.")
        if self.status:
            return None  # the navigation succeeded, even if another connection to the same host failed
        going = addresses.parse(self.going)
        return self.gate.failures.get((going.host, addresses.port_of(going)))

    async def _arrive(self, page: Page) -> None:
        selector = self.wanted["wait_for"]
        if selector is not None:
            await _check_selector(page, selector)
        self.doing = "The page was still loading"
        await page.goto(self.wanted["url"], wait_until="load", timeout=0)
        if selector is not None:
            self.doing = f"Nothing visible on the page matched {selector!r}"
            await page.wait_for_selector(selector, timeout=0)

    async def _read(self, page: Page) -> Any:
        for _ in range(ATTEMPTS - 1):
            try:
                return await _evaluate(page)
            except PlaywrightError:  # it is navigating away
                await page.wait_for_load_state("load", timeout=0)
        return await _evaluate(page)

    async def _picture(self, page: Page) -> bytes:
        if self.wanted["full_page"]:
            picture = await page.screenshot(
                full_page=True, clip={"x": 0, "y": 0, "width": WIDEST, "height": HIGHEST}, timeout=0
            )
        else:
            picture = await page.screenshot(timeout=0)
        if len(picture) > LARGEST_PICTURE:
            raise FetchFailed(f"The picture is larger than {LARGEST_PICTURE:,} bytes: take a smaller part of the page.")
        return picture

    def _check_end(self, page: Page) -> None:
        """Raise HowlError if the page moved on by itself to an address that is refused, or was cut off."""
        if refused := self.refusal():
            raise refused
        addresses.parse(page.url)

    def _note_request(self, page: Page, request: Request) -> None:
        if request.is_navigation_request() and request.frame == page.main_frame:
            self.going, self.status = request.url, 0

    def _note_response(self, page: Page, response: Response) -> None:
        if response.request.is_navigation_request() and response.frame == page.main_frame:
            self.status = response.status


async def _check_selector(page: Page, selector: str) -> None:
    try:
        await page.query_selector(selector)
    except PlaywrightError:
        raise InvalidRequest("wait_for is not a selector that a browser understands, such as `#main .ready`.") from None


async def _evaluate(page: Page) -> Any:
    session = await page.context.new_cdp_session(page)
    frame = (await session.send("Page.getFrameTree"))["frameTree"]["frame"]["id"]
    world = await session.send("Page.createIsolatedWorld", {"frameId": frame})
    answer = await session.send(
        "Runtime.evaluate",
        {"expression": EXPRESSION, "contextId": world["executionContextId"], "returnByValue": True},
    )
    return answer["result"]["value"]
