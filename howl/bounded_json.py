"""JSON from strangers: its memory is estimated before it is parsed, because its shape can multiply its size by 45."""

import json
from typing import Any

#: Most bytes of memory for a character of each kind, with the structures that CPython 3.11 allocates for it (measured
#: over many shapes by tests/test_bounded_json.py): a list with its first item, an object with its first key, a further
#: item and its value, a key's place in a large object, and half of a text without its characters.
_COSTS = {b"[": 96, b"{": 240, b",": 40, b":": 90, b'"': 38}
#: Whatever its shape, a document of n bytes takes at most SMALLEST + n * WORST bytes: "[[[…]]]" is the worst shape, and
#: texts add 8 bytes for each of their own.
SMALLEST, SHAPE, WORST = 4096, 46, 54


class TooLarge(ValueError):
    """The document would take more memory than allowed."""


def parsed_size(document: bytes) -> int:
    """Return about the most bytes of memory that parsing takes, with what the parser needs meanwhile."""
    characters = len(document)
    if not document.isascii() or b"\\u" in document:  # one wide character may make a whole text four times as large
        characters *= 4
    shape = sum(document.count(mark) * cost for mark, cost in _COSTS.items())
    return SMALLEST + 2 * characters + min(shape, SHAPE * len(document))


def parse(document: bytes, most: int) -> Any:
    """Parse the document; raises TooLarge if it might take more than `most` bytes, ValueError or RecursionError."""
    needed = parsed_size(document)
    if needed > most:
        raise TooLarge(f"it would take {needed:,} bytes of memory")
    return json.loads(document)
