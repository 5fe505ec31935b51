"""Whether `howl server` does its work: asked by its container's health check, answered by exit status 0 or 1."""

import math
import sys

import redis

from howl.backend import redis_client
from howl.config import Settings, load_settings
from howl.errors import HowlError
from howl.server.stream import GROUP

#: Seconds. The recorder looks for outcomes several times in one, unless PostgreSQL keeps it waiting.
PATIENCE = 60


def main() -> None:
    """Exit 1, with one line saying why, unless the recorder has lately asked Redis for outcomes."""
    try:
        silence = recorder_silence(load_settings())
    except (HowlError, redis.RedisError) as error:
        sys.exit(f"Nothing is known of the recorder: {error}")
    if silence > PATIENCE:
        sys.exit(f"The recorder has not asked for outcomes for {PATIENCE} s: see the log of `howl server`.")


def recorder_silence(settings: Settings) -> float:
    """Seconds since the recorder last asked; raises NotConfigured, or redis.RedisError also where it never did."""
    with redis_client(settings, timeout=5) as client:
        consumers = client.xinfo_consumers(settings.key("outcomes"), GROUP)
    return min((consumer["idle"] / 1000 for consumer in consumers), default=math.inf)


if __name__ == "__main__":
    main()
