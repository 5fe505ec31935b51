"""Convert values that PostgreSQL cannot store; the rules are decided here, once.

JSONB and text refuse NUL characters and lone surrogates (they become U+FFFD), JSON has no NaN and no infinities (they
become the texts "NaN", "Infinity", "-Infinity"). So PostgreSQL can query them; the reported value is stored beside them
as text, for those who read it.
"""

import json
import math
import re
from typing import Any

from howl.outcomes import UNSTORABLE

#: Maximum levels of nested lists and objects: a stored value must also be read, within Python's own recursion limit.
NEST_LIMIT = 200
#: Floats from here on are written with an exponent, but by JSONB without: they would be read back as whole numbers.
WHOLE = 1e16
#: JSON escapes of NUL and of surrogates, including pairs that form a valid character.
SUSPICIOUS = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)


def storable(value: Any, levels: int = NEST_LIMIT) -> Any:
    """Return the value in a form that PostgreSQL can store; raises RecursionError beyond `levels` levels.

    Lists and objects are changed in place: a copy would take as much memory again.
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
    """Return rows as storable JSON: most need no conversion, and searching the text is cheaper than walking them."""
    try:
        written = json.dumps(rows, allow_nan=False)
    except ValueError:
        return json.dumps(storable(rows))
    return json.dumps(storable(rows)) if SUSPICIOUS.search(written) else written


def exact(values: dict[str, Any]) -> str | None:
    """Return, as a JSON object, the values that JSONB would not return unchanged; None if there are none."""
    changed = {name: value for name, value in values.items() if value is not None and _is_changed(value)}
    return json.dumps(changed) if changed else None


def _is_changed(value: Any) -> bool:
    """Return whether JSONB changes it: it sorts keys, writes large floats as whole, has no -0.0; see also above."""
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
    """Order keys of an object as JSONB does."""
    written = key.encode(errors="surrogatepass")
    return len(written), written
