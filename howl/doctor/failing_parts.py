"""The state of `howl server`, read from Redis by `howl doctor` and by the health check.

It is what the server reports of its own parts (howl/server/failing_parts.py), and when its recorder last read outcomes.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from howl.doctor.finding import Answer, beware, wrong

#: The hash's name below the prefix of all keys, and seconds that an entry in it counts.
AILING, LASTS = "_ailing", 120
#: The recorder's consumer group on the streams of outcomes, and its only consumer.
RECORDER = "recorder"
#: Parts without which tasks do not end; work goes on without the others.
VITAL = frozenset(("recorder", "keeper"))
#: Most parts that are reported.
SHOWN = 8


class Ailing(NamedTuple):
    """A part of the server that keeps ending."""

    part: str
    why: str
    times: int

    def __str__(self) -> str:
        return f"the {self.part} ended {self.times:,} times lately: {self.why}"


def read(documents: Iterable[str | bytes], now: int) -> list[Ailing]:
    """Return parts that were reported lately, the vital ones first; `now` is Redis's time in seconds."""
    told = [json.loads(document) for document in documents]
    fresh = [Ailing(each["part"], each["why"], each["times"]) for each in told if now - each["at"] < LASTS]
    return sorted(fresh, key=lambda each: (each.part not in VITAL, each.part))


def silence(consumers: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds since one of the recorder's consumers, as XINFO CONSUMERS lists them, last read."""
    return min((consumer["idle"] / 1000 for consumer in consumers), default=math.inf)


def judge(ailing: list[Ailing]) -> Answer | None:
    """Return a verdict, or None if no part is failing; a server that is absent is another check's matter."""
    if not ailing:
        return None
    judged = wrong if any(each.part in VITAL for each in ailing) else beware
    return judged("; ".join(map(str, ailing[:SHOWN])), "it starts again by itself: see the log of `howl server`")
