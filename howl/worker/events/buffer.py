"""Events that wait to be sent: a bounded buffer, which any thread fills without waiting."""

import threading
from collections import deque
from collections.abc import Callable

#: Most events that wait, and most bytes of them: minutes of a busy worker, hours of an ordinary one.
MOST, MOST_BYTES = 50_000, 16 << 20


class EventBuffer:
    """JSON documents in the order they came; where there is no room for all, the newest are kept.

    Only events of tasks wait here. A heartbeat says how things are now, so an old one is never kept at all, and that a
    worker is online or has left must not be dropped.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        #: Called, in any thread, when an event comes into an empty buffer.
        self.filled: Callable[[], None] = _nobody
        self._most, self._most_bytes = most, most_bytes
        self._documents: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._lock = threading.Lock()

    def add(self, document: bytes) -> None:
        """Add one event, as JSON."""
        with self._lock:
            was_empty = not self._documents
            self._documents.append(document)
            self._bytes += len(document)
            while len(self._documents) > self._most or self._bytes > self._most_bytes:
                self._drop()
        if was_empty:
            self.filled()

    def take(self, limit: int) -> tuple[list[bytes], bool]:
        """Take the oldest events, as many as fit into a JSON list of `limit` bytes; return them and whether more wait.

        An event too large for any such list is dropped.
        """
        taken, room = [], limit - len("[]")
        with self._lock:
            while self._documents:
                size = len(self._documents[0])
                if size > limit - len("[]"):
                    self._drop()
                elif size > room:
                    break
                else:
                    taken.append(self._pop())
                    room -= size + len(",")
            return taken, bool(self._documents)

    def dropped(self) -> int:
        """Return how many events were dropped since the last call."""
        with self._lock:
            count, self._dropped = self._dropped, 0
        return count

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._documents)

    def _drop(self) -> None:
        self._pop()
        self._dropped += 1

    def _pop(self) -> bytes:
        document = self._documents.popleft()
        self._bytes -= len(document)
        return document


def _nobody() -> None:
    """Do nothing: nobody waits yet."""
