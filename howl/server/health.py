"""The container's health check of `howl server`: exits with status 0 or 1."""

import sys
from typing import Any

import redis

from howl.config import Settings, load_settings
from howl.connections.redis import redis_client
from howl.doctor.failing_parts import AILING, RECORDER, VITAL, Ailing, read
from howl.doctor.failing_parts import silence as silence_of
from howl.errors import HowlError, visible

#: Maximum seconds since the recorder's last poll; it polls several times a second, unless PostgreSQL is slow.
PATIENCE = 60


def main() -> None:
    """Exit with status 1 and the reason unless the recorder has recently polled and no vital part is failing.

    Prints a line for each failing part; without the parts that are not vital, tasks still run and are recorded.
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
    """Return the seconds since the recorder last polled.

    Raises NotConfigured, or redis.RedisError, also if it never did.
    """
    with redis_client(settings, timeout=5) as client:
        return silence_of(client.xinfo_consumers(settings.key("outcomes"), RECORDER))


def ailing_parts(settings: Settings) -> list[Ailing]:
    """Return the parts that keep failing, vital ones first; raises NotConfigured or redis.RedisError."""
    with redis_client(settings, timeout=5) as opened:
        client: Any = opened
        return read(client.hvals(settings.key(AILING)), client.time()[0])


if __name__ == "__main__":
    main()
