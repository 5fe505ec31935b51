"""Bounds on what a model is shown: the characters of an answer, and fair shares of them for its parts."""

import json
from collections.abc import Sequence
from typing import Any

#: Most characters of an answer as JSON: clients stop reading at some 25,000 tokens, and a token may be one character.
ANSWER_LIMIT = 24_000
#: Most characters of one row of a list, and of one text in it.
ROW_LIMIT, SHORT_TEXT = 4000, 300
#: Most characters of a text or file that one call returns.
PIECE = 20_000
#: Deepest nesting of a value in an answer; the protocol's JSON writer fails above 255.
DEPTH_LIMIT = 30
#: Characters reserved for each entry of an object whose entries do not all fit, and for a note about a cut.
ENTRY, MARK = 200, 160
#: How to read a value that was cut.
UNCUT = "get_task with `part` reads on, `howl tasks show ID --json` prints all"


def size(value: Any) -> int:
    """Return the number of characters of the value in an answer's JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def cut(text: str, longest: int) -> str:
    """Return the text, or its beginning with a note of its length."""
    return text if len(text) <= longest else f"{text[:longest]} … (cut: it has {len(text):,} characters; {UNCUT})"


def shallow(value: Any, longest: int, depth: int = 0) -> Any:
    """Return the value with texts cut to `longest` characters and nesting cut at DEPTH_LIMIT."""
    if isinstance(value, str):
        return cut(value, longest)
    if not isinstance(value, dict | list):
        return value
    if depth == DEPTH_LIMIT:
        return f"… (nested deeper than that; {UNCUT})"
    if isinstance(value, dict):
        return {cut(name, SHORT_TEXT): shallow(item, longest, depth + 1) for name, item in value.items()}
    return [shallow(item, longest, depth + 1) for item in value]


def fitted(value: Any, room: int) -> Any:
    """Return the value, or as much of it and its parts as fits `room` characters."""
    if size(value) <= room:
        return value
    if isinstance(value, dict):
        return _fitted_entries(value, room)
    if isinstance(value, list):
        number = fitting(value, room - MARK)
        shown = value[:number] or [fitted(value[0], room - MARK)]
        left = len(value) - len(shown)
        return [*shown, f"… (cut: {left:,} more; {UNCUT})"] if left else shown
    return _fitted_text(value if isinstance(value, str) else str(value), room)


def within(answer: dict[str, Any], room: int = ANSWER_LIMIT) -> dict[str, Any]:
    """Return an answer of at most `room` characters that has all entries; they share the room."""
    names = [*answer]
    sizes = [size(value) for value in answer.values()]
    room -= sum(size(name) + 2 for name in names)
    given = shares(sizes, room)
    return {name: fitted(answer[name], most) for name, most in zip(names, given, strict=True)}


def fitting(items: Sequence[Any], room: int) -> int:
    """Return how many of the items, from the first on, fit `room` characters."""
    for number, item in enumerate(items):
        room -= size(item) + 1
        if room < 0:
            return number
    return len(items)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """Divide `room` fairly: none gets more than it wants, and what it leaves goes to the others."""
    given = [0] * len(wanted)
    for left, index in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        given[index] = min(wanted[index], max(room, 0) // left)
        room -= given[index]
    return given


def _fitted_entries(value: dict[str, Any], room: int) -> dict[str, Any]:
    """Return as many of the first entries as fit, cutting each where fewer than room // ENTRY fit whole."""
    whole = fitting([{name: item} for name, item in value.items()], room - MARK)
    names = [*value][: max(whole, room // ENTRY, 1)]
    shown = within({name: value[name] for name in names}, room - MARK)
    left = len(value) - len(names)
    return shown | {"…": f"cut: {left:,} more; {UNCUT}"} if left else shown


def _fitted_text(text: str, room: int) -> str:
    """Cut a text to `room` characters of JSON, where one character may take six."""
    longest = max(room - MARK, room // 2, 0)
    beginning = text[:longest]
    while beginning and size(beginning) > longest:
        beginning = beginning[: len(beginning) * longest // size(beginning) - 1 if longest > 1 else 0]
    return cut(text, len(beginning)) if room > 2 * MARK else f"{beginning}…"
