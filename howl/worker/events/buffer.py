"""Events that wait to be told: filled from any thread, which never waits for it, and bounded."""

import threading
from collections import deque
from collections.abc import Callable

#: Most events that wait, and most bytes of them: minutes of a busy worker, hours of an ordinary one.
MOST, MOST_BYTES = 50_000, 16 << 20


class EventBuffer:
    """JSON documents in the order they came; where there is no room for all, the newest are kept.

    Only what happened to tasks waits here. A heartbeat says how things are now, so an old one is never kept at all, and
    that a worker is there or has left is not for dropping.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        #: Called, in whichever thread, when something waits where nothing did.
        self.filled: Callable[[], None] = _nobody
        self._most, self._most_bytes = most, most_bytes
        self._documents: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._lock = threading.Lock()

    def add(self, document: bytes) -> None:
        """Remember one event, as JSON."""
        with self._lock:
            was_empty = not self._documents
            self._documents.append(document)
            self._bytes += len(document)
            while len(self._documents) > self._most or self._bytes > self._most_bytes:
                self._drop()
        if was_empty:
            self.filled()

    def take(self, limit: int) -> tuple[list[bytes], bool]:
        """The oldest events, as many as fit into a JSON list of so many bytes, and whether more wait.

        One that is too large for any list is dropped.
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
        """How many events were dropped since this was last asked."""
        with self._lock:
            count, self._dropped = self._dropped, 0
        return count

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._documents)

    def _drop(self) -> None:
        self._pop()
        self._dropped += 1

    def _pop(self) -> bytes:
        document = self._documents.popleft()
        self._bytes -= len(document)
        return document


def _nobody() -> None:
    """Nobody waits yet."""
