"""How much of anything a model is shown: an answer's characters, and their fair shares for its parts."""

import json
from collections.abc import Sequence
from typing import Any

#: Most characters of an answer as JSON: clients stop reading at some 25,000 tokens, and a token may be one character.
ANSWER_LIMIT = 24_000
#: Of one row of a list, and of one text in it.
ROW_LIMIT, SHORT_TEXT = 4000, 300
#: Characters of a text or file that one call reads on.
PIECE = 20_000
#: Deepest nesting of a value in an answer; the protocol's own writer fails above 255.
DEPTH_LIMIT = 30
#: Characters for an entry of an object of which parts are shown, where they do not all fit, and for what says of a cut.
ENTRY, MARK = 200, 160
#: Where the rest of what is cut is.
UNCUT = "get_task with `part` reads on, `howl tasks show ID --json` prints all"


def size(value: Any) -> int:
    """Characters of the value as an answer's JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def cut(text: str, longest: int) -> str:
    """The text, or the beginning of it and how much there is of it."""
    return text if len(text) <= longest else f"{text[:longest]} … (cut: it has {len(text):,} characters; {UNCUT})"


def shallow(value: Any, longest: int, depth: int = 0) -> Any:
    """The value with texts cut to `longest` characters, and with nothing nested deeper than DEPTH_LIMIT."""
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
    """The value, or as much of each of its parts as `room` characters have room for."""
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
    """An answer of so many characters at most, its entries sharing the room; all of them are in it."""
    names = [*answer]
    sizes = [size(value) for value in answer.values()]
    room -= sum(size(name) + 2 for name in names)
    given = shares(sizes, room)
    return {name: fitted(answer[name], most) for name, most in zip(names, given, strict=True)}


def fitting(items: Sequence[Any], room: int) -> int:
    """How many of the items, from the first on, `room` characters hold."""
    for number, item in enumerate(items):
        room -= size(item) + 1
        if room < 0:
            return number
    return len(items)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """`room` dealt out fairly: nobody gets more than he wants, and what he leaves is for the others."""
    given = [0] * len(wanted)
    for left, index in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        given[index] = min(wanted[index], max(room, 0) // left)
        room -= given[index]
    return given


def _fitted_entries(value: dict[str, Any], room: int) -> dict[str, Any]:
    """As many of the first entries as there is room for, or of fewer a part of each."""
    whole = fitting([{name: item} for name, item in value.items()], room - MARK)
    names = [*value][: max(whole, room // ENTRY, 1)]
    shown = within({name: value[name] for name in names}, room - MARK)
    left = len(value) - len(names)
    return shown | {"…": f"cut: {left:,} more; {UNCUT}"} if left else shown


def _fitted_text(text: str, room: int) -> str:
    """In JSON, a character may take six."""
    longest = max(room - MARK, room // 2, 0)
    beginning = text[:longest]
    while beginning and size(beginning) > longest:
        beginning = beginning[: len(beginning) * longest // size(beginning) - 1 if longest > 1 else 0]
    return cut(text, len(beginning)) if room > 2 * MARK else f"{beginning}…"
