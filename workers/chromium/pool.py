"""The browsers of this worker process: each used for one page at a time, kept for the next, ended with the process."""

import contextlib
import importlib.util
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from howl import errors
from howl.errors import BrowserFailed, NotConfigured
from workers.checkout.permissions import settings
from workers.chromium.visit import Sight, Visit
from workers.process.process import SUPERVISOR
from workers.process.spec import Order, passed_on

#: Names of browsers in PATH; the first one found is used. A headless shell takes a quarter of the time.
NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "google-chrome",
    "google-chrome-stable",
    "chromium",
    "chromium-browser",
)

#: Most seconds for a browser to start, to answer beyond a page's own timeout, and to end.
START_TIME = 60.0
ANSWER_TIME = 10.0
END_TIME = 10.0
CHUNK = 1 << 20

#: Unused browsers, one for each task that ran at the same time: a thread of a threads pool takes any of them.
_idle: "deque[Host]" = deque()


def look(wanted: Visit) -> tuple[Sight, bytes]:
    """Visit a page, and return what was read and the bytes of its picture.

    Raises NotConfigured, BrowserFailed, AddressRefused, FetchFailed, InvalidRequest.
    """
    with _taken() as host:
        answer, picture = host.ask(wanted)
    _raise_reported(answer)
    return answer["seen"], picture


def close() -> None:
    """End all unused browsers."""
    while _idle:
        _idle.pop().close()


@contextmanager
def _taken() -> Iterator["Host"]:
    """Provide a browser for exclusive use; any error here, a soft time limit included, ends it."""
    host = _find()
    try:
        yield host
    except BaseException:
        host.close()
        raise
    if host.spent:
        host.close()
    else:
        _idle.append(host)


def _find() -> "Host":
    while _idle:
        host = _idle.pop()
        if host.is_alive():
            return host
        host.close()
    return Host()


class Host:
    """A browser in a process of its own (host.py), under a supervisor that ends it with this process."""

    def __init__(self) -> None:
        order = _order()
        self.spent = False
        self._unread = bytearray()
        # If a soft time limit interrupts this method, dropping the socket ends the supervisor as well.
        self._control, theirs = socket.socketpair()
        with theirs:
            self._supervisor = _start_supervisor(theirs.fileno())
        self._requests = cast("BinaryIO", self._supervisor.stdin)
        self._answers = cast("BinaryIO", self._supervisor.stdout)
        try:
            self._control.sendall(json.dumps(order).encode() + b"\n")
            _raise_reported(self._line(time.monotonic() + START_TIME))
        except BaseException:
            self.close()
            raise

    def is_alive(self) -> bool:
        """Return whether it waits for a visit: it sends nothing unasked, so anything to read means that it ended."""
        return not _readable(self._answers, 0)

    def ask(self, wanted: Visit) -> tuple[dict[str, Any], bytes]:
        """Send a visit, and return the answer and the bytes of a picture; raises BrowserFailed without an answer."""
        deadline = time.monotonic() + wanted["timeout"] + ANSWER_TIME
        with contextlib.suppress(BrokenPipeError):  # reading finds out that it ended
            self._requests.write(json.dumps(wanted).encode() + b"\n")
            self._requests.flush()
        answer = self._line(deadline)
        self.spent = answer["spent"]
        return answer, self._read(answer.get("size", 0), deadline)

    def close(self) -> None:
        """End the browser with all its processes."""
        self._control.close()
        try:
            self._supervisor.wait(END_TIME)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait(END_TIME)
        self._answers.close()
        with contextlib.suppress(BrokenPipeError):  # a request that it did not read
            self._requests.close()

    def _line(self, deadline: float) -> Any:
        while b"\n" not in self._unread:
            self._receive(deadline)
        return json.loads(self._cut(self._unread.index(b"\n") + 1))

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._unread) < size:
            self._receive(deadline)
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        part = bytes(self._unread[:size])
        del self._unread[:size]
        return part

    def _receive(self, deadline: float) -> None:
        if not _readable(self._answers, deadline - time.monotonic()):
            raise BrowserFailed("The browser did not answer in time and was ended; the next page gets a new one.")
        chunk = os.read(self._answers.fileno(), CHUNK)
        if not chunk:
            raise BrowserFailed("The browser ended unexpectedly; the next page gets a new one.")
        self._unread += chunk


def _readable(pipe: BinaryIO, seconds: float) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1,023
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _raise_reported(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])


def _order() -> Order:
    if importlib.util.find_spec("playwright") is None:
        raise NotConfigured("This worker has no Playwright: install howl[browser] on it.")
    sandbox = settings().browser_sandbox and os.geteuid() != 0
    argv = [sys.executable, "-I", "-m", "workers.chromium.host", _executable(), "sandbox" if sandbox else "no-sandbox"]
    return {"argv": argv, "env": passed_on(), "cwd": None, "limits": {}}


def _executable() -> str:
    names = (settings().browser,) if settings().browser else NAMES
    found = next(filter(None, map(shutil.which, names)), None)  # type: ignore[arg-type]  # no name is None here
    if found is None:
        raise NotConfigured(
            "This worker has no browser: install Chromium or Chrome on it, or name its program in HOWL_BROWSER."
        )
    return found


def _start_supervisor(descriptor: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", SUPERVISOR, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[descriptor],
        env=passed_on(),
        start_new_session=True,  # out of reach of signals to the worker's group
    )
