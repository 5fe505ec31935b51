"""browser.screenshot and browser.page, called directly: a real browser, and a real web site on loopback."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Error as PlaywrightError

from howl.errors import AddressRefused, BrowserFailed, FetchFailed, InvalidRequest, NotConfigured
from tests.helpers.site import Site
from tests.helpers.support import eventually, optional_program
from workers import addresses
from workers.browser import capture, page, screenshot
from workers.chromium import host as browser_host
from workers.chromium import pool, socks_proxy

PNG = b"\x89PNG\r\n\x1a\n"
SLOW = 60.0


@pytest.fixture(scope="module", autouse=True)
def program() -> Iterator[str]:
    """The browser; it is started once and serves most tests."""
    yield optional_program(*pool.NAMES)
    pool.close()


@pytest.fixture
def site(owner_says: Callable[..., None]) -> Iterator[Site]:
    owner_says(HOWL_WEB_ALLOW_PRIVATE="1")
    with Site("127.0.0.1") as running:
        yield running


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(PNG)
    return struct.unpack_from(">16x2I", png)


def host() -> pool.Host:
    """The one browser that waits for the next page."""
    (waiting,) = pool._idle
    return waiting


def test_a_screenshot_is_a_png_of_the_viewport_with_title_status_and_final_url(site: Site):
    shot = capture(site.url("/hop?to=/page"), viewport=[640, 480], timeout=SLOW)
    assert size(shot.png) == (640, 480)
    assert (shot.seen["title"], shot.seen["status"], shot.seen["url"]) == ("A & B é", 200, site.url("/page"))


@pytest.mark.parametrize(("there", "seen"), [(3_000, 3_000), (30_000, 10_000)])
def test_a_whole_page_is_shown_up_to_a_limit(site: Site, there: int, seen: int):
    site.pages["/tall"] = f"<body style='margin:0'><div style='height:{there}px'>"
    assert size(capture(site.url("/tall"), full_page=True, viewport=[200, 100], timeout=SLOW).png) == (200, seen)


def test_what_scripts_wrote_can_be_read_with_its_links(site: Site):
    site.pages["/app"] = (
        "<title>App</title><a href=/a>one</a><a href=mailto:x@y>no</a><script>document.write('<p>written')</script>"
    )
    found = page(site.url("/app"), timeout=SLOW)
    assert found["text"].split() == ["oneno", "written"]
    assert found["links"] == [{"text": "one", "url": site.url("/a")}]
    assert not found["truncated"]


def test_text_and_links_are_bounded(site: Site):
    site.pages["/long"] = "<a href=/x>link</a> " * 300 + "é" * 50_000
    found = page(site.url("/long"), timeout=SLOW)
    assert (len(found["text"]), len(found["links"]), found["truncated"]) == (30_000, 200, True)


def test_half_a_character_and_names_that_hide_others_do_no_harm(site: Site):
    site.pages["/odd"] = "<img name=body><form name=title></form><p><script>document.write('\\ud83d')</script>"
    found = page(site.url("/odd"), timeout=SLOW)
    assert str(found).encode()


def test_an_error_status_is_an_answer(site: Site):
    assert page(site.url("/missing"), timeout=SLOW)["status"] == 404


def test_a_page_that_goes_on_by_itself_is_followed(site: Site):
    site.pages["/away"] = "<script>location = '/page'</script>"
    assert page(site.url("/away"), wait_for="h1", timeout=SLOW)["url"] == site.url("/page")


def test_waiting_for_something_waits_until_it_is_visible(site: Site):
    site.pages["/late"] = "<p id=it hidden>there<script>setTimeout(() => it.hidden = false, 300)</script>"
    assert page(site.url("/late"), wait_for="#it", timeout=SLOW)["text"] == "there"


def test_the_same_browser_serves_page_after_page_and_none_finds_another_s_traces(site: Site):
    site.pages["/visits"] = """<p><script>
        document.write(document.cookie + localStorage.x);
        document.cookie = "a=b";
        localStorage.x = 1;
        </script>"""
    first = page(site.url("/visits"), timeout=SLOW)["text"]
    served = host()
    assert page(site.url("/visits"), timeout=SLOW)["text"] == first == "undefined"
    assert host() is served


def test_a_page_with_dialogs_and_windows_is_shown_and_none_opens(site: Site):
    site.pages["/loud"] = (
        "<title>Loud</title><script>alert(1); confirm(2); prompt(3); for (let i = 0; i < 50; i++) open('/popup' + i);"
        "onbeforeunload = () => 'stay'</script>"
    )
    assert capture(site.url("/loud"), timeout=SLOW).seen["title"] == "Loud"
    assert [path for path in site.asked if path.startswith("/popup")] == []


@pytest.mark.parametrize(
    "markup", ["<script>while (true);</script>", "<img src=/trickle>", "<script>while (true) alert(1)</script>"]
)
def test_a_page_that_hangs_ends_at_its_time_limit_and_the_next_has_a_browser(site: Site, markup: str):
    site.pages["/hanging"] = markup
    assert page(site.url("/page"), timeout=SLOW)  # a browser is there: starting one would take of the time
    with pytest.raises(FetchFailed, match="after 1 s, the time it was given"):
        page(site.url("/hanging"), timeout=1)
    assert not pool._idle
    assert page(site.url("/page"), timeout=SLOW)["status"] == 200


def test_waiting_for_what_never_comes_ends_and_says_for_what(site: Site):
    for seconds in (4, 16, 60):  # on a busy machine a browser may not be so far as to wait for it
        with pytest.raises(FetchFailed, match=f"after {seconds} s") as caught:
            page(site.url("/page"), wait_for="#never", timeout=seconds)
        if "Nothing visible on the page matched '#never'" in caught.value.message:
            return
    pytest.fail(caught.value.message)


def test_a_page_that_takes_too_much_memory_crashes_alone(site: Site):
    site.pages["/greedy"] = "<script>const a = []; while (true) a.push(new Array(1e6).fill(0.5))</script>"
    with pytest.raises(FetchFailed, match="crashed"):
        page(site.url("/greedy"), timeout=5 * SLOW)  # which is long where a whole Chromium has half a processor
    assert page(site.url("/page"), timeout=SLOW)["status"] == 200


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/file", FetchFailed, "downloading"),
        ("/loop", FetchFailed, "ERR_TOO_MANY_REDIRECTS"),
        ("/hop?to=file:///etc/passwd", FetchFailed, "ERR_UNSAFE_REDIRECT"),
        ("/hop?to=http://user:secret@127.0.0.1:9/", AddressRefused, "holds credentials"),
        ("/hop?to=http://127.0.0.1:9/", FetchFailed, "ERR_UNSAFE_PORT"),
        ("/hop?to=http://nowhere.invalid/", FetchFailed, "nowhere.invalid has no address"),
    ],
)
def test_an_answer_that_leads_nowhere_is_a_clear_error(site: Site, path: str, error: type, message: str):
    with pytest.raises(error, match=message) as caught:
        page(site.url(path), timeout=SLOW)
    assert "secret" not in str(caught.value)


def test_a_page_that_goes_on_to_credentials_is_refused(site: Site):
    target = site.url("/page").replace("http://", "http://user:secret@")
    with pytest.raises(AddressRefused, match="credentials") as caught:
        page(site.url(f"/hop?to={target}"), timeout=SLOW)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "http://user:secret@127.0.0.1/", "chrome://version", "data:text/html,x", "about:blank", ""],
)
def test_a_url_that_is_no_page_of_the_web_is_refused(url: str):
    with pytest.raises(AddressRefused) as caught:
        page(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:a00:1]"])
def test_an_address_that_is_not_public_is_refused(host: str):
    with pytest.raises(AddressRefused):
        page(f"http://{host}:8080/", timeout=SLOW)


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": 5},
        {"viewport": [10_000, 10_000]},
        {"viewport": [0, 100]},
        {"viewport": [100]},
        {"viewport": "100x100"},
        {"viewport": [True, 100]},
        {"full_page": "yes"},
        {"wait_for": ""},
        {"wait_for": 5},
        {"wait_for": "x" * 10_000},
        {"timeout": 0},
        {"timeout": None},
        {"timeout": 10**6},
        {"timeout": float("nan")},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_arguments_that_make_no_visit_are_refused(arguments: dict):
    with pytest.raises(InvalidRequest):
        screenshot(**{"url": "http://example.com/", **arguments})


def test_a_selector_that_no_browser_understands_is_refused_before_the_page_is_asked_for(site: Site):
    with pytest.raises(InvalidRequest, match="not a selector"):
        page(site.url("/page"), wait_for="###[", timeout=SLOW)
    assert site.asked == []


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Not pytest's, whose path is too long for a browser's socket."""
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.parametrize("whom", [os.kill, os.killpg])
def test_a_browser_that_was_killed_while_it_waited_is_replaced(
    site: Site, whom: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, short_folder: str
):
    pool.close()
    monkeypatch.setenv("TMPDIR", short_folder)  # nobody is left to remove the browser's own
    page(site.url("/page"), timeout=SLOW)
    before = host()
    whom(before._supervisor.pid, signal.SIGKILL)
    eventually(lambda: not before.is_alive())
    assert page(site.url("/page"), timeout=SLOW)["status"] == 200
    assert host() is not before


def test_without_a_browser_the_error_says_what_to_do(owner_says: Callable[..., None]):
    pool.close()
    owner_says(HOWL_BROWSER="no-such-browser")
    with pytest.raises(NotConfigured, match="HOWL_BROWSER"):
        page("http://example.com/")


def test_a_program_that_is_no_browser_is_a_clear_error(owner_says: Callable[..., None]):
    pool.close()
    owner_says(HOWL_BROWSER="false")
    with pytest.raises(BrowserFailed, match="false could not be started"):
        page("http://example.com/", timeout=SLOW)


def test_a_browser_starts_however_long_the_path_of_the_folder_for_temporary_files_is(
    site: Site, owner_says: Callable[..., None], tmp_path: Path
):
    pool.close()
    (deep := tmp_path / ("x" * 150)).mkdir()
    # A whole one, where there is one: it makes a socket there, and a headless shell does not.
    owner_says(HOWL_BROWSER=optional_program(*reversed(pool.NAMES)), TMPDIR=str(deep))
    assert page(site.url("/page"), timeout=SLOW)["status"] == 200
    assert list(deep.iterdir()) == []
    pool.close()


NOISE = "[9:9:1128/080000.1:ERROR:dbus/bus.cc(408)] Failed to connect to the bus: no sandboxed bus"
FATAL = "[9:9:1128/080000.2:FATAL:chrome/browser/process_singleton_posix.cc:315] Socket path too long: /long"


def test_of_a_browsers_words_the_line_is_shown_that_says_why_it_does_not_start(
    owner_says: Callable[..., None], tmp_path: Path
):
    pool.close()
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\nprintf '%s\\n' '{NOISE}' 'in a sandbox' '{FATAL}' '#0 0x55' >&2\nexit 1\n")
    broken.chmod(0o755)
    owner_says(HOWL_BROWSER=str(broken))
    with pytest.raises(BrowserFailed) as caught:
        page("http://example.com/", timeout=SLOW)
    assert caught.value.message == f"{broken} could not be started: {FATAL}"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ((NOISE, "chromium: error while loading shared libraries: libnss3.so"), "libnss3.so"),
        (("Running as root without --no-sandbox is not supported.", "bye"), "Running as root"),
        ((NOISE, "Received signal 11 SEGV_MAPERR 000000000018", "#0 0x55", "[end of stack trace]"), "signal 11"),
        ((NOISE,), "browser has been closed"),
    ],
)
def test_neither_noise_nor_the_command_line_is_taken_for_the_reason(words: tuple[str, ...], shown: str):
    logged = [
        "<launching> /usr/bin/chromium --no-sandbox",
        "<launched> pid=9",
        *(f"[pid=9][err] {word}" for word in words),
    ]
    again = "".join(f"\n  - {line}" for line in logged)
    message = "BrowserType.launch: Target page, context or browser has been closed\nBrowser logs:\n\n"
    assert shown in browser_host._last_words(PlaywrightError(message + "\n".join(logged) + "\nCall log:" + again))


def test_without_playwright_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    pool.close()
    monkeypatch.setitem(sys.modules, "playwright", None)
    with pytest.raises(NotConfigured, match=r"howl\[browser\]"):
        page("http://example.com/")


def test_a_worker_needs_no_playwright_to_know_the_tasks():
    look = "import sys, workers.browser; sys.exit('playwright' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], timeout=60).returncode == 0


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def visitor(loop: asyncio.Runner, program: str) -> Iterator[browser_host.Visitor]:
    """A browser in this process, whose idea of addresses and limits a test may change."""
    with contextlib.ExitStack() as stack:
        opened = browser_host.opened(program, sandbox=False)
        running = loop.run(opened.__aenter__())
        stack.callback(lambda: loop.run(opened.__aexit__(None, None, None)))
        yield running


def visit(loop: asyncio.Runner, visitor: browser_host.Visitor, url: str, **more: object) -> tuple:
    wanted = {"url": url, "viewport": [300, 200], "wait_for": None, "picture": False, "full_page": False}
    return loop.run(visitor.visit({**wanted, "timeout": SLOW, "allow_private": False, **more}))


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site on an address that passes for public: no public server is at hand."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    with Site("127.0.0.1") as running:
        yield running


@pytest.fixture
def private() -> Iterator[Site]:
    with Site("127.0.0.2") as running:
        yield running


@pytest.mark.parametrize("how", ["/hop?to={}", "/script?to={}"])
def test_a_page_that_leads_to_a_private_address_is_refused_before_anything_connects(
    loop, visitor, public: Site, private: Site, how: str
):
    target = private.url("/page", host="127.0.0.2")
    public.pages[f"/script?to={target}"] = f"<p>1<script>location = '{target}'</script>"
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.2"):
        visit(loop, visitor, public.url(how.format(target)))
    assert (len(public.seen), private.seen) == (1, [])


def test_nothing_that_a_page_asks_for_reaches_a_private_address(loop, visitor, public: Site, private: Site):
    there = private.url("", host="127.0.0.2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stun:
        stun.bind(("127.0.0.2", 0))
        stun.setblocking(False)
        public.pages["/nosy"] = f"""<link rel=preconnect href={there}><link rel=stylesheet href={there}/css>
            <img src={there}/img><iframe src={there}/page></iframe><script src={there}/script></script><p>
            <script>
            fetch("{there}/fetch", {{mode: "no-cors"}}).catch(() => 0);
            new WebSocket("{there}/socket".replace("http", "ws"));
            new Worker(URL.createObjectURL(new Blob(["importScripts('{there}/worker')"])));
            const peer = new RTCPeerConnection({{iceServers: [{{urls: "stun:127.0.0.2:{stun.getsockname()[1]}"}}]}});
            peer.createDataChannel("x");
            peer.createOffer().then(offer => peer.setLocalDescription(offer));
            setTimeout(() => document.body.insertAdjacentHTML("beforeend", "<h2>end</h2>"), 700);
            </script>"""
        seen, _ = visit(loop, visitor, public.url("/nosy"), wait_for="h2")
        assert "end" in seen["text"]
        assert private.seen == []
        with pytest.raises(BlockingIOError):
            stun.recv(1)


def test_an_endless_page_ends_at_the_limit_of_bytes(loop, visitor, public: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socks_proxy, "PAGE_BYTES", 1_000_000)
    with pytest.raises(FetchFailed, match="larger than"):
        visit(loop, visitor, public.url("/endless"))


def test_a_packed_bomb_ends_at_the_limit_of_memory_or_of_time(site: Site):
    site.pages["/frame"] = "<iframe src=/bomb></iframe>"
    with contextlib.suppress(FetchFailed):
        page(site.url("/frame"), timeout=5)
    assert page(site.url("/page"), timeout=SLOW)["status"] == 200


def test_a_browser_has_done_its_share_after_so_many_pages(loop, visitor, public: Site):
    visitor.left = 2
    visit(loop, visitor, public.url("/page"))
    assert not visitor.spent
    visit(loop, visitor, public.url("/page"))
    assert visitor.spent
