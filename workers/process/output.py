"""Output of a program: the beginning and end of each stream, kept within a limit, and its lines as they come."""

from collections import deque
from collections.abc import Callable

#: Most bytes kept of each stream, half from its beginning and half from its end. Even if JSON takes six characters for
#: every byte, two streams stay below the largest outcome (HOWL_OUTCOME_LIMIT, 1 MiB).
OUTPUT_LIMIT = 64_000
#: Most bytes kept of a line that has not ended: the limit of a line in a task's log.
LINE_LIMIT = 8_000


class Output:
    """The beginning and the end of one stream; memory stays within the limit, however long the stream is."""

    def __init__(self, limit: int = OUTPUT_LIMIT) -> None:
        self.half = limit // 2
        self.left_out = 0
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        room = self.half - len(self._head)
        self._head += chunk[:room]
        self._tail.append(chunk[room:])
        self._tail_size += len(chunk[room:])
        while self._tail_size > self.half:
            self._shorten(self._tail_size - self.half)

    def _shorten(self, surplus: int) -> None:
        oldest = self._tail.popleft()
        if len(oldest) > surplus:
            self._tail.appendleft(oldest[surplus:])
        dropped = min(len(oldest), surplus)
        self._tail_size -= dropped
        self.left_out += dropped

    def text(self) -> str:
        """Return what was kept, with a line where bytes are missing; bytes that are not UTF-8 become U+FFFD."""
        tail = b"".join(self._tail)
        if not self.left_out:
            return (self._head + tail).decode("utf-8", "replace")
        gap = f"\n[... {self.left_out} bytes left out ...]\n"
        return self._head.decode("utf-8", "replace") + gap + tail.decode("utf-8", "replace")


class Lines:
    """A splitter that reports whole lines of one stream as soon as they are complete; carriage returns end them too."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._begun = b""
        self._returned = False

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._returned:
            chunk = chunk.removeprefix(b"\n")  # the second half of a line end
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        # A leading carriage return overwrites nothing; alone it is no line.
        whole = (self._begun + chunk[:end]).lstrip(b"\r") if end else b""
        self._returned = whole.endswith(b"\r") and end == len(chunk)
        if whole:
            self._tell(whole)
        self._begun = b"" if end else self._begun
        self._begun += chunk[end : end + LINE_LIMIT - len(self._begun)]

    def end(self) -> None:
        """Report the last line if the stream ended without ending it."""
        if self._begun:
            self._tell(self._begun)
            self._begun = b""


def last_lines(stdout: str, stderr: str, *, lines: int = 10, characters: int = 2000) -> str:
    """Return the end of both streams for an error's text, since either may say why a program failed."""
    said = [text for text in (stdout.strip(), stderr.strip()) if text] or ["(nothing)"]
    return "\n".join("\n".join(text.splitlines()[-lines:])[-characters // len(said) :] for text in said)
