"""Whether `howl server` does its work: asked by its container's health check, answered by exit status 0 or 1."""

import sys
from typing import Any

import redis

from howl.config import Settings, load_settings
from howl.connections.redis import redis_client
from howl.doctor.failing_parts import AILING, RECORDER, VITAL, Ailing, read
from howl.doctor.failing_parts import silence as silence_of
from howl.errors import HowlError, visible

#: Seconds. The recorder looks for outcomes several times in one, unless PostgreSQL keeps it waiting.
PATIENCE = 60


def main() -> None:
    """Exit 1, saying why, unless the recorder has lately asked Redis for outcomes and no vital part is ailing.

    A line for each part that is ailing; without the other parts tasks still run and are recorded.
    """
    try:
        settings = load_settings()
        silence, ailing = recorder_silence(settings), ailing_parts(settings)
    except (HowlError, redis.RedisError) as error:
        sys.exit(f"Nothing is known of the recorder: {error}")
    for each in ailing:
        print(visible(f"Ailing: {each}."))  # noqa: T201  # the health check's log
    if silence > PATIENCE:
        sys.exit(f"The recorder has not asked for outcomes for {PATIENCE} s: see the log of `howl server`.")
    if any(each.part in VITAL for each in ailing):
        sys.exit(1)


def recorder_silence(settings: Settings) -> float:
    """Seconds since the recorder last asked; raises NotConfigured, or redis.RedisError also where it never did."""
    with redis_client(settings, timeout=5) as client:
        return silence_of(client.xinfo_consumers(settings.key("outcomes"), RECORDER))


def ailing_parts(settings: Settings) -> list[Ailing]:
    """Those that end again and again, the vital ones first; raises NotConfigured or redis.RedisError."""
    with redis_client(settings, timeout=5) as opened:
        client: Any = opened
        return read(client.hvals(settings.key(AILING)), client.time()[0])


if __name__ == "__main__":
    main()
