"""What a queue may be called: its lists lie beside HOWL's and kombu's own keys, and none may be one of them."""

import re
from functools import lru_cache

from howl.errors import InvalidRequest

#: What kombu puts between a queue's name and its priority.
PRIORITY_MARK = "\x06\x16"
#: How names of HOWL's and kombu's own keys begin, which are no queues, and what the others are called.
NO_QUEUES = ("_", "claims:", "turns:", "doorbell:", "outcomes:", "unacked", "group:", "progress:")
ITS_OWN = ("leases", "outcomes", "inflight", "deaths", "parked", "unknown", "revoked", "dead", "unreadable")
#: How names of kombu's queues for remote control end.
REMOTE_CONTROL = ".pidbox"
#: Most characters of a name: what is asked of people may have 255, and a worker's own queue a few more.
LONGEST = 300
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def require_queue(name: str) -> None:
    """Raise InvalidRequest unless a person may call a queue so."""
    fault = "its end is kombu's own" if name.endswith(REMOTE_CONTROL) else fault_of(name)
    if fault:
        raise InvalidRequest(f"{name[:100]!r} cannot be a queue: {fault}. Choose another name.")


def fault_of(name: str) -> str | None:
    """Why nothing may be put on, or taken from, a queue of this name; None if it may."""
    # First, for it may be a worker's, of any length, and is remembered else.
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
    """The queue that a list belongs to, whatever its priority."""
    return list_name.partition(PRIORITY_MARK)[0]
