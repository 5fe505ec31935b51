"""Durations as people write them: `90s`, `30m`, `24h`, `7d`, or plain seconds."""

import re

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

#: Longest duration in seconds, ten years: a longer one is a mistake, and dates are limited.
LONGEST = 3650 * UNITS["d"]


def parse_duration(text: str) -> float:
    """Return seconds, above 0; raises ValueError, whose message says how to write a duration."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([smhd]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"{text[:40]!r} is no length of time: write 90s, 30m, 24h or 7d")
    return seconds
