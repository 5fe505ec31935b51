"""What PostgreSQL cannot hold, made into what it can: decided once, here.

JSONB and text refuse NUL characters and lone surrogates (they become U+FFFD), JSON has no NaN and no infinities (they
become the texts "NaN", "Infinity", "-Infinity"). So PostgreSQL can be asked about them; what was told stands beside it
as text, for those who read the value.
"""

import json
import math
import re
from typing import Any

from howl.outcomes import UNSTORABLE

#: Most levels of lists and objects within each other: what is stored must also be read, with Python's own limit.
NEST_LIMIT = 200
#: Floats from here on are written with an exponent, and by JSONB without: they would be read as whole numbers.
WHOLE = 1e16
#: NUL, or half a character: so JSON writes them, and whole characters of two halves as well.
SUSPICIOUS = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)


def storable(value: Any, levels: int = NEST_LIMIT) -> Any:
    """The value, or its like that PostgreSQL can hold; raises RecursionError for more levels than that.

    Lists and objects are changed where they are: a copy would take as much memory again.
    """
    if levels == 0:
        raise RecursionError(f"it is nested more than {NEST_LIMIT} levels deep")
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        for at, item in enumerate(value):
            value[at] = storable(item, levels - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = storable(item, levels - 1)
        for key in [key for key in value if UNSTORABLE.search(key)]:
            value[storable(key)] = value.pop(key)
    return value


def as_json(rows: list[dict[str, Any]]) -> str:
    """Most rows hold nothing that PostgreSQL cannot: a look at their text is cheaper than a walk through them."""
    try:
        written = json.dumps(rows, allow_nan=False)
    except ValueError:
        return json.dumps(storable(rows))
    return json.dumps(storable(rows)) if SUSPICIOUS.search(written) else written


def exact(values: dict[str, Any]) -> str | None:
    """Those of the values, as a JSON object, that JSONB would not give back as they are; None if there are none."""
    changed = {name: value for name, value in values.items() if value is not None and _is_changed(value)}
    return json.dumps(changed) if changed else None


def _is_changed(value: Any) -> bool:
    """JSONB sorts keys, writes large floats out as whole numbers, and has no -0.0; see above for the rest."""
    if isinstance(value, str):
        return bool(UNSTORABLE.search(value))
    if isinstance(value, float):
        return not -WHOLE < value < WHOLE or (value == 0 and math.copysign(1, value) < 0)
    if isinstance(value, list):
        return any(map(_is_changed, value))
    if isinstance(value, dict):
        return [*value] != sorted(value, key=_place) or any(map(_is_changed, [*value, *value.values()]))
    return False


def _place(key: str) -> tuple[int, bytes]:
    """By which JSONB sorts an object's keys."""
    written = key.encode(errors="surrogatepass")
    return len(written), written
