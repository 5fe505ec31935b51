"""Connections to Redis that never repeat a command by themselves, and waiting for a Redis that starts."""

import logging
import random
import ssl
import time
from contextlib import suppress
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.tls import redis_options
from howl.errors import QueueUnavailable

logger = logging.getLogger(__name__)

#: Seconds to wait for Redis to accept a connection, and to answer: together below the 20 within which a hanging server
#: is reported. Blocking reads ask for less (BRPOP of kombu and of the bell).
CONNECT_TIMEOUT = 5
ANSWER_TIMEOUT = 12
#: Seconds to wait for a Redis that still loads its data from disk.
LOADING = 120.0


def redis_client(settings: Settings, timeout: float = ANSWER_TIMEOUT) -> redis.Redis:
    """Return a client that never repeats a command by itself: an append repeated blindly lands twice."""
    return redis.Redis.from_url(
        settings.redis(),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, CONNECT_TIMEOUT),
        **redis_options(settings),
    )


def require_redis(settings: Settings) -> None:
    """Raise QueueUnavailable within a few seconds if Redis cannot be used, or within two minutes if it still starts."""
    with redis_client(settings, timeout=5) as client:
        try:
            _ping(client)
        except redis.RedisError as error:
            where = urlsplit(settings.redis())
            address = f"{where.hostname}:{where.port or 6379}"
            raise QueueUnavailable(f"Redis at {address} cannot be used: {_advice(error)}.") from None


def _ping(client: redis.Redis) -> None:
    """Ping Redis, waiting while it answers that it loads its data from disk."""
    deadline = time.monotonic() + LOADING
    while time.monotonic() < deadline:
        with suppress(redis.BusyLoadingError):
            client.ping()
            return
        logger.info("Redis reads its data from the disk: waiting until it has.")
        time.sleep(random.uniform(0.5, 1.0))  # noqa: S311  # jitter
    client.ping()


def _advice(error: redis.RedisError) -> str:
    """Return the reason with advice, which `reason` already includes for certificates and logins."""
    if isinstance(error, redis.AuthenticationError) or isinstance(error.__context__, ssl.SSLError):
        return reason(error)
    return f"{reason(error)}. Check HOWL_REDIS_URL and that the server is up"
