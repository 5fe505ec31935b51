"""What PostgreSQL cannot hold, made into what it can: decided once, here.

JSONB and text refuse NUL characters and lone surrogates (they become U+FFFD), JSON has no NaN and no infinities (they
become the texts "NaN", "Infinity", "-Infinity").
"""

import math
from typing import Any

from howl.outcomes import UNSTORABLE

#: Most levels of lists and objects within each other: what is stored must also be read, with Python's own limit.
NEST_LIMIT = 200


def storable(value: Any, levels: int = NEST_LIMIT) -> Any:
    """The value, or its like that PostgreSQL can hold; raises RecursionError for more levels than that."""
    if levels == 0:
        raise RecursionError(f"it is nested more than {NEST_LIMIT} levels deep")
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {storable(key): storable(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item, levels - 1) for item in value]
    return value
