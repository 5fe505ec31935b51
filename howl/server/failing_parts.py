"""Report in Redis which parts of `howl server` keep failing, for `howl doctor` and the container's health check.

A report lasts only while it is repeated: two minutes after a server was killed, nothing is reported of it.
"""

import json
import logging
import secrets
from typing import Any, NamedTuple

import redis

from howl.config import Settings
from howl.connections.redis import redis_client
from howl.doctor.failing_parts import AILING

logger = logging.getLogger(__name__)

#: Timeout in seconds for a report to Redis; a failed part waits for it before it starts again.
PATIENCE = 2.0
#: Seconds after the last write at which the hash expires.
KEPT = 3600
#: Maximum characters of a stored reason.
REASON_LIMIT = 300


class Board(NamedTuple):
    """The hash in which this server's failing parts are reported; a Redis that is away makes no part fail."""

    client: Any
    key: str
    #: Id of this process: of two servers, one may work.
    server: str

    @classmethod
    def of(cls, settings: Settings) -> "Board":
        return cls(redis_client(settings, timeout=PATIENCE), settings.key(AILING), secrets.token_hex(4))

    def tell(self, part: str, why: str, times: int) -> None:
        """Report that a part has failed so many times without working in between, and why the last time."""
        try:
            seconds, _ = self.client.time()
            told = {"part": part, "why": why[:REASON_LIMIT], "times": times, "at": seconds}
            self.client.hset(self.key, f"{self.server} {part}", json.dumps(told))
            self.client.expire(self.key, KEPT)
        except redis.RedisError as error:
            logger.debug("That the %s is ailing cannot be told: %s.", part, error)

    def forget(self, part: str) -> None:
        """Forget a part that works again or was told to stop."""
        try:
            self.client.hdel(self.key, f"{self.server} {part}")
        except redis.RedisError as error:
            logger.debug("That the %s is well cannot be told: %s.", part, error)
