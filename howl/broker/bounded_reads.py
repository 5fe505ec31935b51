"""Bounded reads of hashes and sorted sets that workers write: Redis closes a connection for too large an answer.

The server's own reads remove values over the limit unread; each removal is logged and counted.
"""

import logging
import math
from contextlib import suppress
from typing import Any, NamedTuple

import redis

from howl.broker.namespaces import DEFAULT_USER, Namespace, user_of
from howl.broker.scripts import READ
from howl.config import Settings

logger = logging.getLogger(__name__)

#: Most members that are read, and bytes of all of them after which no more are read.
MEMBERS, ALL_BYTES = 10_000, 8 << 20
#: Most bytes of an owner's name or a counter, and of a message with its queue: within Redis's limits for one answer.
NAME_BYTES, MESSAGE_BYTES = 4096, 16 << 20
#: Latest Unix time that is shown, in seconds: a worker may write any.
LATEST = 2**33
#: Most bytes of a value that people are shown.
SHOWN = 512
#: Key of the removals by Redis user (`<user>:number`, `<user>:bytes`), and seconds for which they are reported.
REMOVED, TOLD = "_removed", 86_400


class Limits(NamedTuple):
    """Limits: members, bytes of all and of one, bytes returned of each (0: all); whether larger ones are removed."""

    members: int = MEMBERS
    all_bytes: int = ALL_BYTES
    largest: int = NAME_BYTES
    cut: int = 0
    removes: bool = True


NAMES = Limits()
MESSAGES = Limits(largest=MESSAGE_BYTES)
#: For people, whose reads change nothing.
SIGHT = Limits(largest=MESSAGE_BYTES, cut=SHOWN, removes=False)


def fields(
    client: Any, settings: Settings, namespace: Namespace, name: str | bytes, limits: Limits = NAMES
) -> dict[bytes, bytes]:
    """Return the fields of a namespace's hash, as many as the limits allow; raises redis's errors."""
    found = _read(client, settings, namespace, "hash", name, limits)
    return dict(zip(found[::2], found[1::2], strict=True))


def scores(
    client: Any, settings: Settings, namespace: Namespace, name: str, limits: Limits = NAMES, lowest: Any = "-inf",
    highest: Any = "+inf",
) -> dict[bytes, float]:  # fmt: skip
    """Return the members of a namespace's sorted set with their scores, from the lowest score on, as `fields` does."""
    found = _read(client, settings, namespace, "zset", name, limits, lowest, highest)
    return dict(zip(found[::2], map(_score, found[1::2]), strict=True))


def number(text: bytes | None) -> int:
    """Return a count that a worker may have written; 0 if it is not a number."""
    return int(text) if text and len(text) < 10 and text.isdigit() else 0


def is_trusted(namespace: Namespace, settings: Settings) -> bool:
    """Return whether its user has the rights of this server."""
    return namespace.user in (DEFAULT_USER, user_of(settings))


def note_removal(client: Any, settings: Settings, user: str, count: int, size: int) -> None:
    """Count values of a user that were removed, for `howl queues` and `howl doctor`."""
    key = settings.key(REMOVED)
    with client.pipeline(transaction=True) as together:
        together.hincrby(key, f"{user}:number", count)
        together.hincrby(key, f"{user}:bytes", size)
        together.expire(key, TOLD)
        with suppress(redis.exceptions.OutOfMemoryError):  # then only the log reports it
            together.execute()


def removed(client: Any, settings: Settings) -> dict[str, dict[str, int]]:
    """Return, by Redis user, how many values were removed unread within about a day, and their bytes."""
    told: dict[str, dict[str, int]] = {}
    for name, count in client.hgetall(settings.key(REMOVED)).items():
        user, _, what = name.decode(errors="replace").rpartition(":")
        told.setdefault(user, {})[what] = int(count)
    return told


def _read(
    client: Any, settings: Settings, namespace: Namespace, kind: str, name: str | bytes, limits: Limits, *between: Any
) -> list[bytes]:
    key = namespace.root.encode() + (name.encode() if isinstance(name, str) else name)
    removes = limits.removes and not is_trusted(namespace, settings)
    words = [kind, *limits[:3], "remove" if removes else "leave", limits.cut, *between]
    is_type, count, size, *found = READ.run(client, [key], words)
    if removes and is_type not in (kind.encode(), b"none"):
        logger.error("%.300r, of Redis user %s, was a %s: removed.", key, namespace.user, is_type.decode())
        note_removal(client, settings, namespace.user, 1, 0)
    if removes and count:
        logger.error(
            "%d values of %d bytes in %.300r, of Redis user %s: removed unread.", count, size, key, namespace.user
        )
        note_removal(client, settings, namespace.user, count, size)
    return list(found)


def _score(text: bytes) -> float:
    """Return a score that a worker may have written; one that is not a number counts as long past."""
    value = float(text)
    return -math.inf if math.isnan(value) else value
