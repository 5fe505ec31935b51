"""A reader of Redis's append-only file, where every write is logged before any client gets its reply."""

import json
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from howl.embedded.stack import Stack


class Log:
    """The writes of Redis since this object was made, except those it has lost."""

    def __init__(self, stack: Stack, client: Any) -> None:
        self._folder = stack.redis.folder / "appendonlydir"
        self._client = client
        self.keep_whole()
        self._begin = self.size

    def keep_whole(self) -> None:
        """Keep Redis from rewriting its log; to be called again after each start of Redis."""
        # A rewritten log leaves out what was deleted since; and while Redis syncs, it replies first and writes later.
        self._client.config_set("auto-aof-rewrite-percentage", 0)
        self._client.config_set("appendfsync", "no")

    @property
    def path(self) -> Path:
        """The file that Redis writes to now."""
        return max(self._folder.glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)

    @property
    def size(self) -> int:
        """The bytes of the current file."""
        return self.path.stat().st_size

    def added(self, stream: str) -> dict[bytes, bytes]:
        """Return every entry that was added to a stream: its id, and the value of its one field."""
        with self.path.open("rb") as file:
            file.seek(self._begin)
            return {words[2]: words[4] for words in _commands(file) if _is(b"XADD", stream, words)}

    def lose(self, kept: int) -> bytes:
        """Cut the log to `kept` bytes while Redis is down, and return what was lost."""
        with self.path.open("r+b") as file:
            file.seek(kept)
            lost = file.read()
            file.truncate(kept)
        return lost


def taken_in(part: bytes, claims: str) -> Counter[str]:
    """Count, by task id, the messages that this part of a log gave to owners whose `claims` keys begin like this.

    `part` must begin where a command does.
    """
    said = (words for words in _commands(BytesIO(part)) if words[0].upper() == b"HSET")
    values = (words[3] for words in said if words[1].startswith(claims.encode()))
    # A claim is its list, a newline, and its message; all other values in these keys have one line.
    return Counter(json.loads(value.partition(b"\n")[2])["headers"]["id"] for value in values if b"\n" in value)


def _is(name: bytes, key: str, words: list[bytes]) -> bool:
    return words[0].upper() == name and words[1] == key.encode()


def _commands(file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield each whole command as its words: RESP's arrays of bulk strings."""
    try:
        while True:
            yield [_word(file) for _ in range(_number(file))]
    except EOFError:
        return  # the last one may be cut off


def _word(file: BinaryIO) -> bytes:
    size = _number(file)
    word = file.read(size + 2)
    if len(word) < size + 2:
        raise EOFError
    return word[:-2]


def _number(file: BinaryIO) -> int:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return int(line[1:])
