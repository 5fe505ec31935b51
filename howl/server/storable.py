"""What PostgreSQL cannot hold, made into what it can: decided once, here.

JSONB and text refuse NUL characters and lone surrogates (they become U+FFFD), JSON has no NaN and no infinities (they
become the texts "NaN", "Infinity", "-Infinity").
"""

import math
import re
from typing import Any

#: Half a character, as a program writes that cuts UTF-16 in the middle; or none.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: Any) -> Any:
    """The value, or its like that PostgreSQL can hold; raises RecursionError for hundreds of levels."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value
