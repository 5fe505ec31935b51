"""Which parts of `howl server` keep ending, as `howl doctor` and the container's health check read it in Redis.

A word lasts as long as it is repeated: of a server that was killed nothing is told two minutes later.
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

#: Seconds within which Redis takes a word; a part waits for that before it starts again.
PATIENCE = 2.0
#: Seconds after which a hash that nobody writes to is gone.
KEPT = 3600
#: Characters of a reason that are kept.
REASON_LIMIT = 300


class Board(NamedTuple):
    """Where this server's parts say that they are ailing; a Redis that is away is no reason for them to end."""

    client: Any
    key: str
    #: Of this process: of two servers one may be well.
    server: str

    @classmethod
    def of(cls, settings: Settings) -> "Board":
        return cls(redis_client(settings, timeout=PATIENCE), settings.key(AILING), secrets.token_hex(4))

    def tell(self, part: str, why: str, times: int) -> None:
        """That a part has ended so many times without having been well in between, and why the last time."""
        try:
            seconds, _ = self.client.time()
            told = {"part": part, "why": why[:REASON_LIMIT], "times": times, "at": seconds}
            self.client.hset(self.key, f"{self.server} {part}", json.dumps(told))
            self.client.expire(self.key, KEPT)
        except redis.RedisError as error:
            logger.debug("That the %s is ailing cannot be told: %s.", part, error)

    def forget(self, part: str) -> None:
        """It is well again, or has been told to stop."""
        try:
            self.client.hdel(self.key, f"{self.server} {part}")
        except redis.RedisError as error:
            logger.debug("That the %s is well cannot be told: %s.", part, error)
