"""Formats of values for people: times, lengths of time, and texts from remote machines."""

import json
import math
from datetime import UTC, datetime
from typing import Any

from howl.errors import visible as visible

NOTHING = "-"
SIZES = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12))
UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def ago(moment: datetime | None) -> str:
    """Format as `12 s ago` or `in 5 min`, by this machine's clock."""
    if moment is None:
        return NOTHING
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{_rough(seconds)} ago" if seconds > 0 else f"in {_rough(-seconds)}"


def stamp(moment: datetime) -> str:
    """Format the moment in this machine's time zone, with how long ago it was."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({ago(moment)})"


def hour(moment: datetime) -> str:
    """Format the hour that begins at the moment, in this machine's time zone."""
    return f"{moment.astimezone():%a %d %b %H:%M}"


def length(seconds: float | None) -> str:
    """Format as `0.35 s`, `12 s`, `5 min 12 s` or `3 h 4 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 9.995:
        return f"{seconds:.2g} s" if seconds < 0.0995 else f"{seconds:.2f} s".replace(".00 s", " s")
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    name, size, smaller_name, smaller = _unit_and_next(seconds)
    whole, rest = divmod(round(seconds / smaller) * smaller, size)
    return f"{whole:.0f} {name}" + (f" {rest / smaller:.0f} {smaller_name}" if rest else "")


def share(fraction: float | None) -> str:
    """Format as `97 %`, rounded down: never 100 % while something is missing."""
    return NOTHING if fraction is None else f"{math.floor(fraction * 100 + 1e-9)} %"


def size(number: int) -> str:
    """Format as `512 B`, `3.4 MB` or `120 MB`; a megabyte is a million bytes."""
    if number < 1000:
        return f"{number} B"
    scaled, unit = next((number / each, name) for name, each in SIZES if number < 999.5 * each or name == "TB")
    return f"{scaled:.0f} {unit}" if scaled >= 9.95 else f"{scaled:.1f} {unit}"


def counts(numbers: dict[str, int]) -> str:
    """Format as `12 succeeded, 1 failed`."""
    return ", ".join(f"{number} {visible(str(name))}" for name, number in numbers.items()) or NOTHING


def clipped(text: str, limit: int) -> str:
    """Return the text's first line, cut to `limit` characters."""
    first, _, rest = text.strip().partition("\n")
    return first if len(first) <= limit and not rest else f"{first[: limit - 1].rstrip()}…"


def document(value: Any) -> str:
    """Format a result or arguments: texts as they are, objects one name per line, texts of several lines as blocks."""
    if isinstance(value, str):
        return visible(value.rstrip("\n"))
    if isinstance(value, dict) and value:
        return "\n".join(f"{visible(str(name))}:{_nested(item)}" for name, item in value.items())
    return visible(inline(value))


def inline(value: Any) -> str:
    """Format a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def _nested(value: Any) -> str:
    text = document(value)
    if (isinstance(value, dict) and value) or "\n" in text:
        return "".join(f"\n  {line}" for line in text.split("\n"))
    return f" {text}" if text else ""


def _rough(seconds: float) -> str:
    name, size = next((name, size) for name, size in UNITS if seconds >= size or size == 1)
    return f"{int(seconds // size)} {name}"


def _unit_and_next(seconds: float) -> tuple[str, int, str, int]:
    index = next(index for index, (_, size) in enumerate(UNITS[:-1]) if seconds >= size - 0.5)
    return *UNITS[index], *UNITS[index + 1]
