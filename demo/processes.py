"""The demo's processes: `howl` commands that end with it, and a search for processes they left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from howl.embedded.process import die_with
from howl.errors import DemoFailed

HOWL = str(Path(sys.executable).with_name("howl"))

#: Seconds for a command to end after each signal, and for the last processes to end.
STOP_PATIENCE = 10.0
LAST_PATIENCE = 5.0
#: Seconds for a one-off command.
COMMAND_PATIENCE = 60.0
POLL = 0.05

PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>


class Command:
    """A running `howl …` command, with its output in a file; the kernel ends it with this process."""

    def __init__(self, *arguments: str, log: Path, death_signal: signal.Signals = signal.SIGKILL) -> None:
        self.title = f"howl {arguments[0]}"
        self.log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [HOWL, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which ends them in order
                preexec_fn=partial(die_with, os.getpid(), death_signal),
            )

    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Raise DemoFailed, with its last lines, if it ended."""
        if not self.running():
            raise DemoFailed(f"`{self.title}` stopped by itself (exit status {self.popen.returncode}): {self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.output().splitlines()[-8:])

    def end(self, *patiences: float) -> None:
        """Terminate it, once for each of so many seconds to wait (by default `STOP_PATIENCE`), then kill it."""
        for patience in patiences or (STOP_PATIENCE,):
            self.popen.terminate()
            try:
                self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            return
        self.popen.kill()
        self.popen.wait(STOP_PATIENCE)


@contextmanager
def command(*arguments: str, log: Path) -> Iterator[Command]:
    """Run a `howl …` command until the block ends."""
    started = Command(*arguments, log=log)
    try:
        yield started
    finally:
        started.end()


def output_of(*argv: str | Path, **variables: str) -> str:
    """Run a program and return what it prints; raises DemoFailed if it fails."""
    done = subprocess.run(
        argv, env=os.environ | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=COMMAND_PATIENCE, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise DemoFailed(f"`{Path(argv[0]).name}` ended with exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and a closed terminal KeyboardInterrupts, also in the background; ignore them afterwards."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's arguments
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        # The clean-up that runs now must be completed.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def environment_of(word: str) -> str:
    """Return the environment of the process with this word on its command line; empty if it may not be read.

    Raises DemoFailed if there is no such process.
    """
    for entry in Path("/proc").glob("[1-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            if word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                try:
                    return (entry / "environ").read_bytes().decode(errors="replace")
                except PermissionError:
                    return ""
    raise DemoFailed(f"No process has {word!r} on its command line.")


def adopt_orphans() -> None:
    """Make every descendant a child of this process when its own parent dies, from now on (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_leftovers() -> list[str]:
    """Wait `LAST_PATIENCE` seconds for every descendant to end; kill those that have not, and return their titles."""
    deadline = time.monotonic() + LAST_PATIENCE
    while _has_children():
        if time.monotonic() > deadline:
            return _kill_children()
        time.sleep(POLL)
    return []


def _has_children() -> bool:
    """Reap children that have ended, and return whether any are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill_children() -> list[str]:
    """Kill all children, until none is left or time is up: a dying child's own children become ours."""
    found: dict[int, str] = {}
    deadline = time.monotonic() + LAST_PATIENCE
    while _has_children() and time.monotonic() < deadline:
        for pid in _children():
            found.setdefault(pid, _title(pid))
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is still its own
        time.sleep(POLL)
    return list(found.values()) or ["a process that could not be found"]


def _children() -> list[int]:
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return f"process {pid}"
