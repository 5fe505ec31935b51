"""Running one program from a list of arguments: limited output, environment by allow-list, no process left behind."""

import contextlib
import errno
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self, TypedDict, cast

from howl.errors import ArgumentsTooLong, CommandFailed, CommandNotStarted, CommandTimedOut, InvalidRequest
from howl.worker.task import context, time_limits
from workers.process.output import Lines, Output, last_lines
from workers.process.spec import Order, check_timeout, order, passed_on

log = logging.getLogger(__name__)

SUPERVISOR = Path(__file__).with_name("supervisor.py")

#: Most seconds the supervisor may take to start, and to end a tree (its GRACE and KILL_TIME, and a margin).
START_TIME = 20.0
END_TIME = 10.0
#: Most seconds to go on reading after the end while a process out of reach holds a pipe open.
DRAIN_TIME = 1.0

CHUNK = 1 << 16

#: A function that takes some whole lines.
Tell = Callable[[bytes], None]


class ProcessResult(TypedDict):
    """The result of a program: a negative exit status is the signal that ended it, duration is in seconds."""

    exit_status: int
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    duration: float
    pid: int


def run(
    argv: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    data: str | None = None,
    timeout: float | None = None,
    tell: Tell | None = None,
    limits: Mapping[str, int] | None = None,
) -> ProcessResult:
    """Run a program with `data` on its standard input; all it started is gone afterwards, however this call ends.

    Its lines go to the running task's log as they come, those of both streams in the order in which they are read;
    `tell`, if given, gets those of standard output instead, and none are logged. `limits` apply to each of its
    processes, by their names in the module `resource`.

    Raises InvalidRequest, CommandNotStarted, CommandTimedOut after `timeout` seconds, CommandFailed.
    """
    check_timeout(timeout)
    if not isinstance(data, str | None):
        raise InvalidRequest("The input must be a text.")
    with Run(order(argv, env, cwd, limits), (data or "").encode("utf-8", "replace"), tell) as process:
        process.converse(timeout)
        return process.result()


class Run:
    """A program under its supervisor (see supervisor.py); leaving this context ends whatever is left of it."""

    def __init__(self, wanted: Order, data: bytes, tell: Tell | None = None) -> None:
        self.order = wanted
        self.name = f"The program {wanted['argv'][0]!r}"
        self.data = memoryview(data)
        self.stdout, self.stderr = Output(), Output()
        self.lines = Lines(tell or context.log), Lines(_untold if tell else context.log)
        self.heard: dict[str, Any] = {}
        self.unread = b""
        self.started = self.ended = time.monotonic()
        # If a soft time limit interrupts between here and `with`, dropping the socket ends the supervisor as well.
        self.control, theirs = socket.socketpair()
        with theirs:
            self.supervisor = _start_supervisor(theirs.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.control.close()
        try:
            self.supervisor.wait(END_TIME)
        except subprocess.TimeoutExpired:
            log.warning("The supervisor of process %s did not end and is killed.", self.heard.get("pid"))
            self.supervisor.kill()
            self.supervisor.wait(END_TIME)
        if self.supervisor.returncode and "pid" in self.heard:
            self._end_group()
        for pipe in _pipes(self.supervisor):
            pipe.close()
        for lines in self.lines:
            lines.end()

    def converse(self, timeout: float | None) -> None:
        """Serve all pipes until the tree is gone; raises CommandTimedOut after `timeout` seconds."""
        self._give_order()
        with selectors.DefaultSelector() as pipes:
            self._register(pipes)
            in_time = self._serve(pipes, self._guard_there, timeout or math.inf)
            timed_out = not in_time and "exit_status" not in self.heard
            if not in_time:
                self.control.shutdown(socket.SHUT_WR)
                self._serve(pipes, self._guard_there, END_TIME)
            self._serve(pipes, lambda: bool(pipes.get_map()), DRAIN_TIME)
        if timed_out:
            raise CommandTimedOut(
                f"{self.name} was ended after {timeout:g} s, its time limit; its last lines: {self._last_lines()}"
            )

    def result(self) -> ProcessResult:
        """Return how the program ended; raises CommandNotStarted, or CommandFailed if its end is not known."""
        if "error" in self.heard:
            raise self._not_started()
        if "exit_status" not in self.heard:
            raise CommandFailed(f"{self.name} lost its supervisor process; its last lines: {self._last_lines()}")
        if "left" in self.heard:
            log.warning("%s left processes that could not be ended: %s.", self.name, self.heard["left"])
        return {
            "exit_status": self.heard["exit_status"],
            "stdout": self.stdout.text(),
            "stderr": self.stderr.text(),
            "stdout_truncated": self.stdout.left_out > 0,
            "stderr_truncated": self.stderr.left_out > 0,
            "duration": round(self.ended - self.started, 3),
            "pid": self.heard["pid"],
        }

    def _not_started(self) -> CommandNotStarted:
        said = f"{self.name} could not be started: {self.heard['error']}"
        if self.heard["errno"] == errno.E2BIG:
            return ArgumentsTooLong(f"{said}: give what is long on its standard input, or in a file.")
        return CommandNotStarted(f"{said}: {self.heard['about']}.")

    def _end_group(self) -> None:
        """Kill the program's process group, which is all that can be done if the supervisor itself was killed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.heard["pid"], signal.SIGKILL)

    def _give_order(self) -> None:
        self.control.settimeout(START_TIME)
        # A supervisor that could not start writes the reason to its standard error, which result() shows.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(json.dumps(self.order).encode() + b"\n")
        self.control.setblocking(False)

    def _register(self, pipes: selectors.BaseSelector) -> None:
        stdin, stdout, stderr = _pipes(self.supervisor)
        os.set_blocking(stdin.fileno(), False)
        pipes.register(stdin, selectors.EVENT_WRITE, lambda: self._feed(stdin))
        pipes.register(stdout, selectors.EVENT_READ, lambda: _move(stdout, self.stdout, self.lines[0]))
        pipes.register(stderr, selectors.EVENT_READ, lambda: _move(stderr, self.stderr, self.lines[1]))
        pipes.register(self.control, selectors.EVENT_READ, self._hear)

    def _serve(self, pipes: selectors.BaseSelector, wanted: Callable[[], bool], patience: float) -> bool:
        """Serve the pipes while `wanted` returns true; return False if `patience` seconds were not enough."""
        deadline = time.monotonic() + patience
        while wanted():
            time_limits.check()
            left = deadline - time.monotonic()
            for key, _ in pipes.select(max(0.0, min(left, time_limits.patience()))):
                if not key.data():
                    pipes.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]  # each is a pipe or the socket
            if left <= 0:  # checked last: this process may have slept, and what arrived in time counts
                return not wanted()
        return True

    def _guard_there(self) -> bool:
        return self.control.fileno() != -1

    def _feed(self, stdin: IO[bytes]) -> bool:
        """Write the next part of the input; return False when all of it is written, or nobody reads it."""
        try:
            self.data = self.data[os.write(stdin.fileno(), self.data[:CHUNK]) :]
        except BrokenPipeError:
            return False
        return bool(self.data)

    def _hear(self) -> bool:
        """Read the supervisor's messages, which are lines of JSON; return False when it has ended."""
        try:
            chunk = self.control.recv(CHUNK)
        except ConnectionResetError:
            return False
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        for line in lines:
            self.heard |= (message := json.loads(line))
            if "exit_status" in message:
                self.ended = time.monotonic()
        return bool(chunk)

    def _last_lines(self) -> str:
        return last_lines(self.stdout.text(), self.stderr.text())


def _untold(lines: bytes) -> None:
    """Drop a program's standard error here; it is kept for errors alone."""


def _start_supervisor(descriptor: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", SUPERVISOR, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[descriptor],
        env=passed_on(),
        start_new_session=True,  # out of reach of signals to the worker's group
        bufsize=0,
    )


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    pipes = (process.stdin, process.stdout, process.stderr)
    return cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", pipes)  # it was started with all three


def _move(pipe: IO[bytes], output: Output, lines: Lines) -> bool:
    """Keep and report what can be read now; return False at the end of the stream."""
    chunk = os.read(pipe.fileno(), CHUNK)
    output.add(chunk)
    lines.add(chunk)
    if not chunk:
        lines.end()
    return bool(chunk)
