"""Hashes and sorted sets that workers write, read within limits: Redis closes a connection for too large an answer.

What is larger than it may be is removed unread where the server looks after it, with a line, and counted.
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

#: Most members that are read, and bytes of all of them after which no more are.
MEMBERS, ALL_BYTES = 10_000, 8 << 20
#: Bytes of an owner's name or a counter, and of a message with its queue: Redis's limits for one answer leave room.
NAME_BYTES, MESSAGE_BYTES = 4096, 16 << 20
#: Unix time that is shown at most: a worker may write any.
LATEST = 2**33
#: Bytes that are shown of what people are shown.
SHOWN = 512
#: What was removed, by Redis user: `<user>:number`, `<user>:bytes`; and seconds for which it is told.
REMOVED, TOLD = "_removed", 86_400


class Limits(NamedTuple):
    """Most members, bytes of all and of one, bytes of each that are passed on (0: all); whether the rest is removed."""

    members: int = MEMBERS
    all_bytes: int = ALL_BYTES
    largest: int = NAME_BYTES
    cut: int = 0
    removes: bool = True


NAMES = Limits()
MESSAGES = Limits(largest=MESSAGE_BYTES)
#: For people, who look and change nothing.
SIGHT = Limits(largest=MESSAGE_BYTES, cut=SHOWN, removes=False)


def fields(
    client: Any, settings: Settings, namespace: Namespace, name: str | bytes, limits: Limits = NAMES
) -> dict[bytes, bytes]:
    """Of one hash of a namespace, as many as its limits allow; raises redis's errors."""
    found = _read(client, settings, namespace, "hash", name, limits)
    return dict(zip(found[::2], found[1::2], strict=True))


def scores(
    client: Any, settings: Settings, namespace: Namespace, name: str, limits: Limits = NAMES, lowest: Any = "-inf",
    highest: Any = "+inf",
) -> dict[bytes, float]:  # fmt: skip
    """The same of one sorted set, from the lowest score on."""
    found = _read(client, settings, namespace, "zset", name, limits, lowest, highest)
    return dict(zip(found[::2], map(_score, found[1::2]), strict=True))


def number(text: bytes | None) -> int:
    """A count that a worker may have written; 0 for what is none."""
    return int(text) if text and len(text) < 10 and text.isdigit() else 0


def is_trusted(namespace: Namespace, settings: Settings) -> bool:
    """Whether its user may do what this server may."""
    return namespace.user in (DEFAULT_USER, user_of(settings))


def note_removal(client: Any, settings: Settings, user: str, count: int, size: int) -> None:
    """Count what was removed of a user's, for `howl queues` and `howl doctor`."""
    key = settings.key(REMOVED)
    with client.pipeline(transaction=True) as together:
        together.hincrby(key, f"{user}:number", count)
        together.hincrby(key, f"{user}:bytes", size)
        together.expire(key, TOLD)
        with suppress(redis.exceptions.OutOfMemoryError):  # then the line in the log alone tells
            together.execute()


def removed(client: Any, settings: Settings) -> dict[str, dict[str, int]]:
    """By Redis user: how many values were removed unread within a day or so, and their bytes."""
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
    """A worker may write any: one that is no number has passed."""
    value = float(text)
    return -math.inf if math.isnan(value) else value
