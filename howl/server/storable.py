"""What PostgreSQL cannot hold, made into what it can: decided once, here.

JSONB and text refuse NUL characters and lone surrogates (they become U+FFFD), JSON has no NaN and no infinities (they
become the texts "NaN", "Infinity", "-Infinity").
"""

import json
import math
import re
from typing import Any

from howl.outcomes import UNSTORABLE

#: Most levels of lists and objects within each other: what is stored must also be read, with Python's own limit.
NEST_LIMIT = 200
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
