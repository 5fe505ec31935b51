"""The browser host: a process that runs one browser behind its gate and visits one page after the other.

`python -m workers.chromium.host EXECUTABLE SANDBOX` reads one visit (JSON) from each line of its standard input, and
answers with a line of JSON, followed by as many bytes of a PNG as that line says. It runs under a supervisor
(supervisor.py) with all that the browser starts: a worker ends all of it by closing a socket or by dying, and neither
Playwright nor a page that hangs is ever in a worker's own process.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, Page, async_playwright
from playwright.async_api import Error as PlaywrightError

from howl.errors import BrowserFailed, FetchFailed, HowlError
from howl.worker.lifecycle.socket_paths import folder_for
from workers.chromium.page_capture import Glance
from workers.chromium.socks_proxy import Gate
from workers.chromium.visit import Sight, Visit

#: Pages after which a browser is replaced, and seconds without a visit after which it ends.
PAGES = 100
IDLE = 300.0
#: Most bytes of memory of each process: a page that needs more crashes, and nothing else does.
MEMORY = 2 << 30
#: Most seconds for a page to close, and most bytes of a line of input.
CLOSE_TIME = 5.0
LINE_LIMIT = 1 << 20
#: Bytes that a full Chrome adds to the path of a folder for its socket, with room for longer names in the future:
#: /howl-browser-…/org.chromium.Chromium.…/SingletonSocket.
SOCKET = 80

FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--block-new-web-contents",
    # Traffic that does not go through the gate gets no name resolution, and no UDP.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
)


#: Default arguments of Playwright that are left out, so that a page cannot open thousands of windows: a headless shell
#: obeys --block-new-web-contents, but Chrome and Chromium need their popup blocker, which Playwright turns off.
LEFT_OUT = ("--disable-popup-blocking",)

#: In Playwright's message: the command line, whose --no-sandbox is no reason; the browser's own output; noise in that.
LAUNCH = re.compile(r"<launch(ing|ed)>")
SAID = re.compile(r"\[pid=\d+\]\[(?:err|out)\] *(\S.*)")
NOISE = re.compile(r"\bdbus/|/crashpad/|^#\d|^\[end of stack trace")
#: Texts in the line that gives the reason, in order of preference; without any, the last line is the likeliest.
REASONS = (":FATAL:", "Received signal", "sandbox")


class Visitor:
    """A browser behind its gate."""

    def __init__(self, browser: Browser, gate: Gate) -> None:
        self.browser = browser
        self.gate = gate
        self.left = PAGES
        self.gone = asyncio.Event()
        browser.on("disconnected", lambda _: self.gone.set())

    @property
    def spent(self) -> bool:
        """Whether this browser must be replaced: it has visited PAGES pages, has ended, or failed to let go of one."""
        return self.left <= 0 or self.gone.is_set()

    async def visit(self, wanted: Visit) -> tuple[Sight, bytes]:
        """Visit one page, and return what was read and a picture, which is empty if none is wanted.

        Raises AddressRefused, FetchFailed, InvalidRequest, BrowserFailed.
        """
        self.left -= 1
        self.gate.allow_private = wanted["allow_private"]
        glance = Glance(self.gate, wanted)
        try:
            async with asyncio.timeout(wanted["timeout"]):
                return await glance.at(await self._new_page(*wanted["viewport"]))
        except TimeoutError:
            self.left = 0  # a page that hangs may not let go of the browser
            late = FetchFailed(f"{glance.doing} after {wanted['timeout']:g} s, the time it was given.")
            raise glance.refusal() or late from None
        except PlaywrightError as error:
            if not self.browser.is_connected():
                raise BrowserFailed("The browser ended while it looked at the page; the next gets a new one.") from None
            raise glance.explained(error) from None
        finally:
            await self._clear_up()

    async def _new_page(self, width: int, height: int) -> Page:
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=False, service_workers="block"
        )
        return await context.new_page()

    async def _clear_up(self) -> None:
        """Remove all traces of the page from a browser that is used again."""
        self.gate.clear()
        if self.spent:
            return
        try:
            async with asyncio.timeout(CLOSE_TIME):
                for context in self.browser.contexts:
                    await context.close()
        except (TimeoutError, PlaywrightError):
            self.left = 0


@asynccontextmanager
async def opened(executable: str, *, sandbox: bool) -> AsyncIterator[Visitor]:
    """Provide a running browser; raises BrowserFailed."""
    async with Gate() as gate, async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(
                executable_path=executable,
                chromium_sandbox=sandbox,
                args=FLAGS,
                ignore_default_args=LEFT_OUT,
                proxy={"server": f"socks5://127.0.0.1:{gate.port}"},
            )
        except PlaywrightError as error:
            raise BrowserFailed(f"{executable} could not be started: {_last_words(error)}") from None
        async with browser:
            yield Visitor(browser, gate)


async def serve(visitor: Visitor) -> None:
    """Answer visits until the input ends, none has come for IDLE seconds, or the browser is spent."""
    lines = asyncio.StreamReader(LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer)
    gone = asyncio.create_task(visitor.gone.wait())
    _say(ready=True)
    while not visitor.spent:
        coming = asyncio.create_task(lines.readline())
        await asyncio.wait((coming, gone), timeout=IDLE, return_when=asyncio.FIRST_COMPLETED)
        if not (coming.done() and coming.result()):
            return
        await _answer(visitor, json.loads(coming.result()))


async def _answer(visitor: Visitor, wanted: Visit) -> None:
    try:
        seen, picture = await visitor.visit(wanted)
    except HowlError as error:
        _say(error=type(error).__name__, message=error.message, spent=visitor.spent)
    else:
        _say(seen=seen, size=len(picture), spent=visitor.spent)
        sys.stdout.buffer.write(picture)
        sys.stdout.buffer.flush()


def _say(**what: Any) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()


async def _run(executable: str, sandbox: bool) -> None:
    this = asyncio.current_task()
    assert this is not None  # noqa: S101 - asyncio.run makes one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        async with opened(executable, sandbox=sandbox) as visitor:
            await serve(visitor)
    except BrowserFailed as error:
        _say(error=type(error).__name__, message=error.message)


def _last_words(error: PlaywrightError) -> str:
    """Find the line in a browser's output that says why it does not start."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip() and not LAUNCH.search(line)]
    said = [found[1] for found in map(SAID.search, lines) if found and not NOISE.search(found[1])]
    others = [line for line in lines if not SAID.search(line)]
    reasons = (line for reason in REASONS for line in (*said, *others) if reason in line)
    return next(reasons, (said[-1:] or others or ["it said nothing"])[0])[:300]


def main(executable: str, sandbox: bool) -> None:
    """Run one browser until the worker no longer needs it."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    folder = folder_for(SOCKET)
    with tempfile.TemporaryDirectory(prefix="howl-browser-", dir=folder, ignore_cleanup_errors=True) as home:
        # Playwright and the browser write all their files there, and they are deleted with the folder.
        os.environ.update(HOME=home, TMPDIR=home)
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_run(executable, sandbox))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "sandbox")
