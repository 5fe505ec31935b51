"""The supervisor: a small process between a worker and one command that makes sure that the whole tree ends.

`python -I -S supervisor.py DESCRIPTOR` reads its order from that socket (one line of JSON: argv, env, cwd, limits),
answers with the command's pid and later its exit status, and ends the tree when the command ends or the socket closes.
The socket also closes when the worker is killed outright. Nothing inside the worker could end the tree in time then:
Celery's hard time limit leaves 0.1 s between SIGTERM and SIGKILL. A process of its own can also be a subreaper without
taking over anyone's children, so a descendant that forked twice into a session of its own comes back here. It imports
the standard library alone.

Limits: a descendant running as another user (sudo) cannot be signalled and is reported; without /proc (macOS) only the
command's process group is ended.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Seconds between SIGTERM and SIGKILL, and most seconds that SIGKILL is repeated for a tree that keeps forking.
GRACE = 2.0
KILL_TIME = 5.0

#: Seconds between two scans of a tree that is asked to end, and of one that is killed.
TICK, RACE = 0.03, 0.0005

PROC = Path("/proc")
LINUX = sys.platform == "linux"
#: Whether the kernel lists the children of each thread (CONFIG_PROC_CHILDREN).
LISTED = Path("/proc/thread-self/children").exists()

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def main(descriptor: int) -> None:
    """Run the one command that is ordered over this socket."""
    os.set_inheritable(descriptor, False)
    control = socket.socket(fileno=descriptor)
    alarm = _wake_on_signals()
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        # An order may hold an agent's key, which other programs of this user could otherwise read from this memory.
        _prctl(PR_SET_DUMPABLE, 0)
    command = _start(control)
    if command:
        tree = Tree(command.pid, control)
        tree.watch(alarm)
        tree.end()


class Tree:
    """A command with all processes that it started."""

    def __init__(self, command: int, control: socket.socket) -> None:
        self.command = command
        self.control = control
        #: Whether the command itself has ended, and whether any process of the tree is left.
        self.ended = False
        self.alive = True
        _say(control, pid=command)

    def watch(self, alarm: socket.socket) -> None:
        """Wait until the command has ended, or the worker or a signal asks for its end."""
        while not self.reap():
            ready, _, _ = select.select([self.control, alarm], [], [])
            if self.control in ready or set(alarm.recv(4096)) - {signal.SIGCHLD}:
                return

    def end(self) -> None:
        """Ask every process of the tree to end, kill what is left, and report any that survived that."""
        self.signal_until_gone(signal.SIGTERM, GRACE)
        self.signal_until_gone(signal.SIGKILL, KILL_TIME)
        if self.alive:
            _say(self.control, left=list(_descendants()))

    def signal_until_gone(self, signum: signal.Signals, patience: float) -> None:
        """Send a signal to the whole tree, new processes included, for up to `patience` seconds."""
        asked: set[int] = set()
        deadline = time.monotonic() + patience
        while self.alive and time.monotonic() < deadline:
            for pid in _descendants() if LINUX else [-self.command]:
                # A second SIGTERM may mean "at once" to a program that is shutting down in order.
                if signum == signal.SIGKILL or pid not in asked:
                    asked.add(pid)
                    _signal(pid, signum)
            self.reap()
            # SIGKILL is a race against a process that keeps forking.
            time.sleep(RACE if signum == signal.SIGKILL else TICK)

    def reap(self) -> bool:
        """Collect ended children, and report the command's exit status; return True when the command has ended.

        On Linux every descendant ends up as a child of the supervisor, so no children means that all are gone;
        elsewhere the command's process group is probed.
        """
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self.command:
                    self.ended = True
                    _say(self.control, exit_status=os.waitstatus_to_exitcode(found[1]))
        except ChildProcessError:
            self.alive = not LINUX and _signal(-self.command, 0)
        return self.ended


def _start(control: socket.socket) -> "subprocess.Popen[bytes] | None":
    line = control.makefile("rb").readline()
    if not line:
        return None  # the worker died before it sent the order
    order = json.loads(line)
    try:
        return subprocess.Popen(
            order["argv"],
            cwd=order["cwd"],
            env=order["env"],
            start_new_session=True,
            preexec_fn=lambda: _prepare(order["limits"]),
        )
    except OSError as error:
        about = os.fsdecode(error.filename or order["argv"][0])
        _say(control, error=error.strerror, errno=error.errno, about=about)
        return None


def _descendants() -> Iterator[int]:
    """Yield the pids of all processes below the supervisor, the youngest generation first; none without /proc."""
    children_of = _children if LISTED else _all_children().get
    found = [os.getpid()]
    for pid in found:
        found.extend(children_of(pid) or ())
    yield from reversed(found[1:])


def _children(pid: int) -> list[int]:
    """Read the kernel's own lists, one per thread: fast enough to catch up with a program that keeps forking."""
    found: list[int] = []
    # A process may end while it is read.
    with contextlib.suppress(OSError):
        for thread in os.scandir(f"{PROC}/{pid}/task"):
            found.extend(map(int, Path(thread.path, "children").read_bytes().split()))
    return found


def _all_children() -> dict[int, list[int]]:
    """Return the children of all processes, by the parent that each process names."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[1-9]*"):
        with contextlib.suppress(OSError):  # likewise
            # proc(5): `pid (name) state ppid …`, and a name may hold blanks and brackets.
            parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    return children


def _signal(pid: int, signum: int) -> bool:
    """Send a signal to a process, or to a group if negative; return whether it existed and could be signalled."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _say(control: socket.socket, **what: Any) -> None:
    # A worker that is gone needs no answer; the tree is ended all the same.
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(what).encode() + b"\n")


def _wake_on_signals() -> socket.socket:
    """Return a socket that gets a byte per signal, so that a signal to end does not leave the tree behind."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)
    return ours


def _prepare(limits: dict[str, int]) -> None:
    """Set limits and the death signal in the command's process, before it becomes the command."""
    if LINUX:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name, value in limits.items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        lowered = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (lowered, lowered))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")


if __name__ == "__main__":
    main(int(sys.argv[1]))
