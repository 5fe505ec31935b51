"""Limits on what one credential may store in Redis; the server removes the excess, so that others have room.

Workers stop taking tasks at HOWL_BACKLOG_LIMIT by themselves. The holder of a stolen credential does not.
"""

import asyncio
import logging
import random
import time
from typing import Any

from howl.broker.bounded_reads import is_trusted, note_removal
from howl.broker.namespaces import Namespace, all_namespaces
from howl.broker.scripts import LIMIT
from howl.config import Settings
from howl.connections.redis import redis_client

logger = logging.getLogger(__name__)

#: Seconds between two checks of Redis's memory, and between two log lines about one user. Unless a user is over its
#: limit or Redis is half full, a pause lasts RESTING times its check, at most LONGEST seconds.
ROUND, SILENCE, RESTING, LONGEST = 0.25, 10.0, 5.0, 2.0
#: What one user may have in Redis: LEEWAY times HOWL_BACKLOG_LIMIT, because runs end after their worker took its last
#: task, or SHARE of Redis's memory, if less. Above NEARLY_FULL of that memory, every member of every key is counted.
LEEWAY, SHARE, NEARLY_FULL = 1.25, 0.5, 0.75
#: Fractions of a user's limit for keys of which it can create any number: above the first, those that no living worker
#: needs are removed, above the second all of them.
TOO_MUCH, FAR_TOO_MUCH = 0.25, 0.5
#: Keys examined in one script call and in one round; there may be millions, so the rest is estimated from these.
KEYS, KEYS_A_ROUND = 500, 50_000
#: Members removed in one step, and steps in one round; each step blocks Redis for some milliseconds.
STEP, STEPS = 10_000, 100
#: The keys that a namespace has once each.
ITS_KEYS = ("outcomes", "parked", "unknown", "leases", "deaths", "dead", "unreadable", "outcomes:bytes")
#: Maximum bytes of what was set aside, for all users together; the oldest is removed.
ASIDE_BYTES = 64 << 20


class NamespaceLimits:
    """Limits every user whose credential is not the server's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis: Any = redis_client(settings)
        #: Where the scan of keys continues, and by how much each user was over its limit: 0, 1 or 2.
        self._cursor: bytes | str = "0"
        self._over: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}
        #: Whether a user was over its limit, or Redis more than half full, at the last check.
        self._busy = False

    async def run(self) -> None:
        """Run until cancelled. Raises Redis's errors."""
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self.look)
            took = time.monotonic() - began
            pause = ROUND if self._busy else min(max(ROUND, RESTING * took), LONGEST)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret

    def look(self) -> None:
        """Check memory; nobody exceeds a limit that all together keep."""
        self._busy = False
        memory = self.redis.info("memory")
        used, most = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
        limit = LEEWAY * self.settings.backlog_limit
        if most:
            limit = min(limit, SHARE * most)
        self._busy = used > most / 2 > 0
        if used > ASIDE_BYTES:
            self._trim_what_is_set_aside()
        if used <= TOO_MUCH * limit and not any(self._over.values()):
            return
        namespaces = [
            namespace
            for namespace in all_namespaces(self.redis, self.settings)
            if not is_trusted(namespace, self.settings)
        ]
        if used > limit:
            for namespace in namespaces:
                self._shorten_to(namespace, int(limit))
        if namespaces:
            self._judge_keys(namespaces, limit, exact=bool(most) and used > NEARLY_FULL * most)

    def _shorten_to(self, namespace: Namespace, limit: int) -> None:
        """Shorten the largest of the keys that a namespace has once, until together they are within the limit."""
        sizes = {key: self._size(key) for key in map(namespace.key, ITS_KEYS)}
        before = sum(sizes.values())
        for _ in range(STEPS):
            if sum(sizes.values()) <= limit:
                break
            largest = max(sizes, key=lambda key: sizes[key])
            self._shorten(largest)
            sizes[largest] = self._size(largest)
        if before > limit:
            self._tell(namespace.user, before, before - sum(sizes.values()), limit)

    def _shorten(self, key: str) -> None:
        """Remove a part small enough to be quick: the oldest outcomes, what is due last, what was set aside first."""
        kind = self.redis.type(key)
        if kind == b"stream":
            left = 3 * self.redis.xlen(key) // 4
            self.redis.xtrim(key, maxlen=left, approximate=left > STEP, limit=STEP if left > STEP else None)
        elif kind == b"zset":
            self.redis.zremrangebyrank(key, -min(STEP, 1 + self.redis.zcard(key) // 4), -1)
        elif kind == b"list" and (length := self.redis.llen(key)) > 1:
            self.redis.ltrim(key, 0, length // 2 - 1)
        else:
            self.redis.unlink(key)

    def _judge_keys(self, namespaces: list[Namespace], limit: float, *, exact: bool) -> None:
        """Examine as many of the other keys as a round allows; what is removed depends on the last round's result."""
        found = self._look_at_keys(namespaces, exact=exact)
        for namespace in namespaces:
            size, was = found[namespace.user], self._over.get(namespace.user, 0)
            self._over[namespace.user] = (size > TOO_MUCH * limit) + (size > FAR_TOO_MUCH * limit)
            if self._over[namespace.user] > was:
                self._tell(namespace.user, size, 0, int(TOO_MUCH * limit))

    def _look_at_keys(self, namespaces: list[Namespace], *, exact: bool) -> dict[str, int]:
        """Estimate the bytes of each user's keys from those examined."""
        words: list[Any] = []
        for namespace in namespaces:
            words += [namespace.root.removeprefix(self.settings.key_prefix), self._over.get(namespace.user, 0)]
        sizes, looked, over = dict.fromkeys((namespace.user for namespace in namespaces), 0), 0, False
        while looked < KEYS_A_ROUND and not over:
            head = [self._cursor, KEYS, int(exact), self.settings.key_prefix]
            self._cursor, count, *numbers = LIMIT.run(self.redis, [], head + words)
            looked += int(count)
            over = self._cursor in (b"0", "0")
            for namespace, size in zip(namespaces, numbers[1::2], strict=True):
                sizes[namespace.user] += int(size)
        part = min(1.0, looked / max(1, self.redis.dbsize()))
        return {user: int(size / max(part, 1e-6)) for user, size in sizes.items()}

    def _size(self, key: str) -> int:
        return int(self.redis.memory_usage(key, samples=0) or 0)

    def _trim_what_is_set_aside(self) -> None:
        key = self.settings.key("unreadable")
        for _ in range(STEPS):
            if self._size(key) <= ASIDE_BYTES:
                return
            self._shorten(key)

    def _tell(self, user: str, size: int, gone: int, limit: int) -> None:
        self._busy = True
        note_removal(self.redis, self.settings, user, 1, gone)
        if time.monotonic() < self._silent_until.get(user, 0.0):
            return
        self._silent_until[user] = time.monotonic() + SILENCE
        logger.error(
            "Redis user %s has %d bytes in Redis, and may have %d: what is too much is removed. If this is no attack, "
            "raise HOWL_BACKLOG_LIMIT; if it is, end the credential (docs/security.md).", user, size, limit,
        )  # fmt: skip
