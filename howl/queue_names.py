"""Valid names of queues: their lists are stored beside HOWL's and kombu's own keys, and must not collide with them."""

import re
from functools import lru_cache

from howl.errors import InvalidRequest

#: Separator that kombu puts between a queue's name and its priority.
PRIORITY_MARK = "\x06\x16"
#: Prefixes of HOWL's and kombu's own keys, which are not queues, and names of those without such a prefix.
NO_QUEUES = ("_", "claims:", "turns:", "doorbell:", "outcomes:", "unacked", "group:", "progress:")
ITS_OWN = ("leases", "outcomes", "inflight", "deaths", "parked", "unknown", "revoked", "dead", "unreadable")
#: Suffix of kombu's queues for remote control.
REMOTE_CONTROL = ".pidbox"
#: Most characters of a name: one that people give may have 255, and a worker's own queue a few more.
LONGEST = 300
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def require_queue(name: str) -> None:
    """Raise InvalidRequest unless a person may give a queue this name."""
    fault = "its end is kombu's own" if name.endswith(REMOTE_CONTROL) else fault_of(name)
    if fault:
        raise InvalidRequest(f"{name[:100]!r} cannot be a queue: {fault}. Choose another name.")


def fault_of(name: str) -> str | None:
    """Return why a queue of this name may not be used; None if it may."""
    # Checked first: a worker may give a name of any length, and the cache would keep it.
    return f"a name has {LONGEST} characters at most" if len(name) > LONGEST else _fault_of(name)


@lru_cache(maxsize=1000)
def _fault_of(name: str) -> str | None:
    if not name.strip():
        return "a name is not empty"
    if CONTROL.search(name):
        return "a name has no control characters"
    if name in ITS_OWN or name.startswith(NO_QUEUES):
        return "one of HOWL's or kombu's own keys is called so, or may be"
    return None


def queue_of(list_name: str) -> str:
    """Return the queue that a list belongs to, whatever its priority."""
    return list_name.partition(PRIORITY_MARK)[0]
