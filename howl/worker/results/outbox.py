"""Outcomes on their way from where a task runs to the session: over a socket from a pool's child, directly elsewhere.

A child writes its outcomes before Celery hears that the task ended, so they are here when the message is settled.
"""

import contextlib
import os
import selectors
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import bootsteps, states

from howl.errors import HowlError
from howl.outcomes import ArtifactKept, Entry, Outcome, PartsAdded
from howl.worker.consumer.server_clock import ServerClock
from howl.worker.lifecycle.loader import hear_of_runs
from howl.worker.lifecycle.socket_paths import folder_for
from howl.worker.task import reporter

#: Lengths of the four parts of a frame: kind, tag, task id, document.
HEADER = struct.Struct("!BHHI")
#: Kinds: a run's progress, its end (or its retry), an end that no later report changes (a success, a cancellation),
#: what belongs to no task; and an event for display, which no session ever sees.
PROGRESS, END, LAST, OTHER, SIGHT = range(5)
#: Seconds a child waits for its parent to read.
PATIENCE = 60.0
CHUNK = 1 << 18
#: Seconds that frames may wait to be read.
PACE = 0.02
#: Prefix of the folders of outboxes' sockets, and age in seconds below which none is taken for a dead worker's.
PREFIX, SETTLED = "howl-outbox-", 60.0
#: Bytes of the socket's path after that of the folder for temporary files: /howl-outbox-12345678/socket.
SOCKET = 28


@dataclass(frozen=True, slots=True)
class Parcel:
    """An outcome, as its run wrote it."""

    kind: int
    tag: str
    task_id: str
    document: bytes


def parcel(entry: Entry, document: bytes, tag: str) -> Parcel:
    """Return an entry as a parcel of its kind."""
    if isinstance(entry, ArtifactKept | PartsAdded):  # like progress: only the holder of the message may report it
        return Parcel(PROGRESS, tag, entry.task_id, document)
    if not isinstance(entry, Outcome):
        return Parcel(OTHER, tag, "", document)
    if entry.state in (states.SUCCESS, states.REVOKED):
        kind = LAST
    elif entry.state in states.READY_STATES or entry.state == states.RETRY:
        kind = END
    else:
        kind = PROGRESS
    return Parcel(kind, tag, entry.task_id, document)


class Outbox(bootsteps.Step):
    """The receiver of the backend's outcomes in a worker, whichever of its processes the backend runs in.

    Made with the worker, before its pool starts children: they inherit it, and reach the parent by its address.
    """

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.collector = Collector()
        self._pid = os.getpid()
        self._senders: dict[int, Sender] = {}
        parent.howl_outbox = self
        ServerClock().rule(parent.app)
        parent.app.howl_outbox = self.put
        parent.app.howl_show = self.show
        hear_of_runs(parent.app)

    def put(self, entry: Entry, document: bytes, tag: str) -> None:
        """Send an outcome towards the session; the backend calls it where it writes."""
        item = parcel(entry, document, tag)
        if item.kind in (END, LAST):
            reporter.flush()
        if os.getpid() == self._pid:
            self.collector.deliver(item)
        else:
            self._sender_of_this_child().send(item)

    def show(self, document: bytes) -> None:
        """Hand an event, complete and as JSON, to the publisher of events; raises OSError when the parent is gone."""
        if os.getpid() == self._pid:
            self.collector.show(document)
        else:
            self._sender_of_this_child().send(Parcel(SIGHT, "", "", document))

    def _sender_of_this_child(self) -> "Sender":
        pid = os.getpid()
        # Two threads may send for the first time at once: both get the same sender.
        return self._senders.get(pid) or self._senders.setdefault(pid, Sender(self.collector.address))


class Sender:
    """A pool child's side: one connection, made when it first has something to send."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def send(self, item: Parcel) -> None:
        """Write one frame; raises OSError when the parent is gone."""
        tag, task_id = item.tag.encode(), item.task_id.encode()
        header = HEADER.pack(item.kind, len(tag), len(task_id), len(item.document))
        with self._lock:
            try:
                self._connected().sendall(b"".join((header, tag, task_id, item.document)))
            except BaseException:  # a soft time limit among them: half a frame would spoil all that follow
                self._hang_up()
                raise

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(PATIENCE)
            self._socket.connect(self.address)
        return self._socket

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Collector(threading.Thread):
    """The parent's side: reads all children, and hands every parcel to `deliver` or `show`, under one lock."""

    def __init__(self) -> None:
        super().__init__(name="howl-outbox", daemon=True)
        #: Set by the adapter of claims, before the thread starts.
        self.deliver: Callable[[Parcel], None] = _nobody
        #: Set by the step that publishes events; called by any thread, with the JSON of one event, and returns at once.
        self.show: Callable[[bytes], None] = _unseen
        self._lock = threading.RLock()
        _clear_away_what_the_dead_left()
        # Private to this user, so that nobody else on the machine can pose as a child.
        self._folder = tempfile.mkdtemp(prefix=PREFIX, dir=folder_for(SOCKET))
        self.address = str(Path(self._folder) / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._closed = False

    def run(self) -> None:
        while not self._closed:
            # Wait without the lock, read with it. Settling a message reads at once; what is left to this thread is
            # progress, and large outcomes, whose child waits for room: neither is worth a wake-up for every frame.
            if self._selector.select(timeout=1.0):
                time.sleep(PACE)
                self.read()
        self._selector.close()

    def read(self) -> None:
        """Deliver all that children have written by now; any thread may call it."""
        with self._lock:
            while not self._closed and (ready := self._selector.select(timeout=0)):
                for key, _ in ready:
                    if key.data is None:
                        self._accept()
                    else:
                        self._receive(key.fileobj, key.data)  # type: ignore[arg-type]  # only sockets are registered

    def close(self) -> None:
        """Read what is left and stop listening; closing again does nothing."""
        self.read()
        with self._lock:
            if self._closed:
                return
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._closed = True  # now: the thread, which may look at any moment, closes the selector when it sees this
            if not self.is_alive():  # or the thread may be waiting on it
                self._selector.close()
            with contextlib.suppress(OSError):
                os.unlink(self.address)  # noqa: PTH108
                os.rmdir(self._folder)  # noqa: PTH106

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            child, _ = self._listener.accept()
            child.setblocking(False)
            self._selector.register(child, selectors.EVENT_READ, bytearray())

    def _receive(self, child: socket.socket, buffer: bytearray) -> None:
        try:
            received = child.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:  # the child ended; a frame it had begun is lost with its run
            self._selector.unregister(child)
            child.close()
            return
        buffer += received
        for item in _frames(buffer):
            if item.kind == SIGHT:
                self.show(item.document)
            else:
                self.deliver(item)


def _clear_away_what_the_dead_left() -> None:
    """Remove the folders that killed workers left behind."""
    for folder in Path(folder_for(SOCKET)).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or another worker was quicker
            if _is_left_over(folder):
                (folder / "socket").unlink(missing_ok=True)
                folder.rmdir()


def _is_left_over(folder: Path) -> bool:
    """Return whether the folder is this user's, and nobody listens there, nor is about to."""
    about = folder.lstat()
    if about.st_uid != os.geteuid() or time.time() - about.st_mtime < SETTLED:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(folder / "socket"))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False


def _nobody(item: Parcel) -> None:
    raise HowlError(f"The outcome of {item.task_id} came before this worker consumes: start it again.")


def _unseen(document: bytes) -> None:
    """Drop an event, for nobody publishes it."""


def _frames(buffer: bytearray) -> list[Parcel]:
    """Take whole frames off the buffer."""
    items, at = [], 0
    while len(buffer) - at >= HEADER.size:
        kind, tag, task_id, document = HEADER.unpack_from(buffer, at)
        end = at + HEADER.size + tag + task_id + document
        if len(buffer) < end:
            break
        first = at + HEADER.size
        middle = first + tag + task_id
        items.append(
            Parcel(
                kind,
                bytes(buffer[first : first + tag]).decode(errors="replace"),
                bytes(buffer[first + tag : middle]).decode(errors="replace"),
                bytes(buffer[middle:end]),
            )
        )
        at = end
    del buffer[:at]
    return items
