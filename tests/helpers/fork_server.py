"""A fork server for programs of HOWL's: it has imported their libraries, which is most of what starting one costs.

Each process that it starts is one of its own, with its own arguments, environment, streams and session, and runs the
whole program. It inherits imported libraries alone, nothing of HOWL. Where a test looks at a process from outside (its
command line, its environment), the program has to be executed instead; its memory reads larger than it is.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

#: Programs that it can start, besides modules by `python -m`.
PROGRAMS = ("howl", "celery")
#: Variables that Python itself reads when it starts begin so; of those that differ, this one can be followed later.
PYTHONS, FOLLOWED = "PYTHON", "PYTHONPATH"
#: Libraries that the server, workers and commands import.
PRELOADED = (
    "alembic.command",
    "celery.app",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "click",
    "httpx",
    "kombu.transport.redis",
    "nats.js",
    "psycopg",
    "pydantic_settings",
    "redis.asyncio",
    "rich.console",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.orm",
)
#: Maximum bytes of a request: an environment and a command line.
MAX_REQUEST_BYTES = 64 << 10
#: Seconds for the fork server to import everything and answer, on a machine that other tests keep busy.
ANSWER_TIMEOUT_S = 60.0
#: Standard input, output and errors.
STREAMS = 3


def can_fork(argv: list[str], env: dict[str, str]) -> bool:
    """Return whether the program is one of HOWL's, or a module, and nothing is to differ from the start."""
    known = (argv[0] == sys.executable and argv[1] == "-m") or Path(argv[0]).name in PROGRAMS
    differing = (name for name, value in env.items() if os.environ.get(name) != value)
    return known and not any(name.startswith(PYTHONS) and name != FOLLOWED for name in differing)


class Forked:
    """A process of the fork server's, with what tests use of `subprocess.Popen`."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, streams: tuple[int, int, int]) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps({"argv": argv, "env": env, "cwd": str(cwd)}).encode()
            assert len(request) <= MAX_REQUEST_BYTES
            control, _ = _fork_server()
            socket.send_fds(control, [request], [*streams, theirs.fileno()])
        self._status.settimeout(ANSWER_TIMEOUT_S)
        self.pid = int(self._status.recv(20))

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._look(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            with suppress(BlockingIOError, TimeoutError):
                self.returncode = int(self._status.recv(20))
                self._status.close()
        return self.returncode


@cache
def _fork_server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start it once in each process that runs tests; it ends when that does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        line = [sys.executable, __file__, str(theirs.fileno())]
        return ours, subprocess.Popen(line, pass_fds=[theirs.fileno()])


# --- the fork server ------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.waiting: dict[int, socket.socket] = {}
        self.woken, self.wakes = socket.socketpair()
        for end in (self.woken, self.wakes):
            end.setblocking(False)

    def run(self) -> dict[str, Any] | None:
        """Serve until the tests' process is gone: None; or return, in a new process, what it was asked to be."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            for source in (self.control, self.woken):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self.woken in ready:
                    self.woken.recv(4096)
                    self._tell_of_ends()
                if self.control in ready:
                    request, descriptors, _, _ = socket.recv_fds(self.control, MAX_REQUEST_BYTES, STREAMS + 1)
                    if not request:
                        return None
                    if asked := self._fork(json.loads(request), descriptors):
                        return asked

    def _fork(self, asked: dict[str, Any], descriptors: list[int]) -> dict[str, Any] | None:
        *streams, status = descriptors
        if (pid := os.fork()) == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for end in (self.control, self.woken, self.wakes, *self.waiting.values()):
                end.detach()  # or it would close, once collected, a descriptor of another's that has its number
            return asked
        self.waiting[pid] = socket.socket(fileno=status)
        self.waiting[pid].send(b"%d" % pid)
        for stream in streams:
            os.close(stream)
        return None

    def _tell_of_ends(self) -> None:
        while self.waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self.waiting.pop(pid) as teller, suppress(BrokenPipeError):
                teller.send(b"%d" % os.waitstatus_to_exitcode(status))


def _become(asked: dict[str, Any], path: list[str]) -> NoReturn:
    """Be the process that was asked for: a script, or a module after `-m`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(STREAMS, os.sysconf("SC_OPEN_MAX"))
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    program, *arguments = asked["argv"]
    if program == sys.executable:
        _, module, *arguments = arguments
        sys.path[:] = [str(Path.cwd()), *given, *path]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [str(Path(program).parent), *given, *path]
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
    sys.exit()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' process gets it as well, and ends this one
    path = sys.path[1:]  # without this folder
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = _Server(socket.socket(fileno=int(sys.argv[1]))).run()
    if asked is not None:
        _become(asked, path)


if __name__ == "__main__":
    main()
