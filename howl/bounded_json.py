"""JSON from strangers: how much memory it takes is estimated before it is parsed; its shape can multiply it by 45."""

import json
from typing import Any

#: Bytes of memory that a character of each kind stands for at most, with what grows around it in CPython 3.11 (measured
#: over many shapes by tests/test_bounded_json.py): a list with its first place, an object with its first key, a further
#: place and what may be in it, a key's place in a large object, and half a text without its characters.
_COSTS = {b"[": 96, b"{": 240, b",": 40, b":": 90, b'"': 38}
#: Whatever its shape, a document of n bytes takes no more than SMALLEST + n * WORST: "[[[…]]]" is the worst shape there
#: is, and texts add 8 bytes for each of theirs.
SMALLEST, SHAPE, WORST = 4096, 46, 54


class TooLarge(ValueError):
    """What the document would take in memory is more than was allowed."""


def parsed_size(document: bytes) -> int:
    """Bytes of memory that the parsed document takes at most, about, with what the parser needs meanwhile."""
    characters = len(document)
    if not document.isascii() or b"\\u" in document:  # one character may make all of a text four times as wide
        characters *= 4
    shape = sum(document.count(mark) * cost for mark, cost in _COSTS.items())
    return SMALLEST + 2 * characters + min(shape, SHAPE * len(document))


def parse(document: bytes, most: int) -> Any:
    """The document; raises TooLarge if it might take more than `most` bytes, ValueError or RecursionError."""
    needed = parsed_size(document)
    if needed > most:
        raise TooLarge(f"it would take {needed:,} bytes of memory")
    return json.loads(document)
