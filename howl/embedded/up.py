"""`howl up`: the embedded servers, the migrations and `howl server`, on this machine, in the foreground."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from howl.embedded.process import die_with
from howl.embedded.stack import Stack, StackUrls
from howl.errors import EmbeddedServerError
from howl.server import migrate

#: Seconds between two checks of the servers, and for `howl server` to end when asked to.
LOOK = 0.2
STOP_PATIENCE = 10.0


def run(home: Path, *, verbose: bool, when_up: Callable[[Stack], None]) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP; call `when_up` once everything runs.

    Raises EmbeddedServerError if a server cannot be started, or ends by itself.
    """
    with _stop_signals() as told, Stack(home) as stack:
        migrate.upgrade(stack.urls.database_url)
        with _howl_server(stack.urls, verbose=verbose) as server:
            when_up(stack)
            while not told:
                _check(server)
                stack.check()
                time.sleep(LOOK)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list to which the signals that mean "stop" are added as they arrive."""
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _howl_server(urls: StackUrls, *, verbose: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Run `howl server`, writing to this terminal; pass URLs with their passwords through its environment."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "howl.cli", "server", *(["--verbose"] if verbose else [])],
        env=os.environ | _variables(urls),
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal is for this process, which stops it before the servers it uses.
        start_new_session=True,
        preexec_fn=partial(die_with, os.getpid(), signal.SIGKILL),
    )
    try:
        yield server
    finally:
        _end(server)


def _variables(urls: StackUrls) -> dict[str, str]:
    return {
        "HOWL_REDIS_URL": urls.redis_url,
        "HOWL_NATS_URL": urls.nats_url,
        "HOWL_DATABASE_URL": urls.database_url,
    }


def _check(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        raise EmbeddedServerError(
            f"`howl server` stopped by itself (exit status {server.returncode}); what it said last stands above."
        )


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(STOP_PATIENCE)
