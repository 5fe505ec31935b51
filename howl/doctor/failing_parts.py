"""How `howl server` does, read in Redis by `howl doctor` and by the health check: what it says of its own parts
(howl/server/failing_parts.py), and when its recorder last asked for outcomes.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from howl.doctor.finding import Answer, beware, wrong

#: The hash, below the prefix of all keys, and seconds that a word in it counts.
AILING, LASTS = "_ailing", 120
#: The recorder's consumer group on the streams of outcomes, and its only consumer.
RECORDER = "recorder"
#: Parts without which tasks come to no end; the others are missed, and work goes on.
VITAL = frozenset(("recorder", "keeper"))
#: Most that are told of.
SHOWN = 8


class Ailing(NamedTuple):
    """A part that ends again and again."""

    part: str
    why: str
    times: int

    def __str__(self) -> str:
        return f"the {self.part} ended {self.times:,} times lately: {self.why}"


def read(documents: Iterable[str | bytes], now: int) -> list[Ailing]:
    """Those of whom was lately told, the vital ones first; `now` is Redis's time in seconds."""
    told = [json.loads(document) for document in documents]
    fresh = [Ailing(each["part"], each["why"], each["times"]) for each in told if now - each["at"] < LASTS]
    return sorted(fresh, key=lambda each: (each.part not in VITAL, each.part))


def silence(consumers: Iterable[Mapping[str, Any]]) -> float:
    """Seconds since one of the recorder's consumers, as XINFO CONSUMERS tells of them, last asked."""
    return min((consumer["idle"] / 1000 for consumer in consumers), default=math.inf)


def judge(ailing: list[Ailing]) -> Answer | None:
    """None where all is well: a server that says nothing may not be there, which is another question."""
    if not ailing:
        return None
    judged = wrong if any(each.part in VITAL for each in ailing) else beware
    return judged("; ".join(map(str, ailing[:SHOWN])), "it starts again by itself: see the log of `howl server`")
