"""A rate limit on what a credential's workers may have recorded: a leaky bucket of HOWL_RECORD_LIMIT bytes per hour.

Its level is in PostgreSQL, and is written with what it counts: a restart, or a second server, starts no new one.
"""

import logging

from sqlalchemy import text
from sqlalchemy.orm import Session

from howl.config import Settings

logger = logging.getLogger(__name__)

#: Bytes on PostgreSQL's disk, in rows and indexes, that an entry takes beyond its own size. Measured: 710 bytes for an
#: outcome of 276 bytes, 106,200 for one of 100 kB.
OVERHEAD = 450
HOUR = 3600
#: Fraction of the limit below which a slowed user counts as recovered.
RECOVERED = 0.9

_CHARGE = text("""
INSERT INTO record_usage AS u (redis_user, level, bytes, entries, refused, updated_at)
VALUES (:user, :cost, :cost, :entries, :refused, now())
ON CONFLICT (redis_user) DO UPDATE SET
level = greatest(u.level - :rate * greatest(extract(epoch FROM now() - u.updated_at), 0), 0) + excluded.bytes,
bytes = u.bytes + excluded.bytes, entries = u.entries + excluded.entries, refused = u.refused + excluded.refused,
updated_at = now()
RETURNING level
""")


class Budget:
    """The record budget of each credential; logs when one exceeds its limit and when it is below it again."""

    def __init__(self, settings: Settings) -> None:
        self.limit = settings.record_limit
        self._above: set[str] = set()

    def charge(self, opened: Session, user: str, sizes: list[int], refused: int = 0) -> float:
        """Count entries of these sizes in bytes; return how many bytes of the limit are then used."""
        given = {"cost": sum(sizes) + OVERHEAD * len(sizes), "entries": len(sizes), "refused": refused}
        return float(opened.execute(_CHARGE, given | {"user": user, "rate": self.limit / HOUR}).scalar_one())

    def seconds_after(self, user: str, level: float) -> float:
        """Return the seconds until a user at this level, in bytes, is within the limit: its outcomes wait so long."""
        if level > self.limit and user not in self._above:
            self._above.add(user)
            logger.warning(
                "Redis user %s has had %d MB recorded within an hour: its outcomes wait in Redis, and are recorded at "
                "that rate; its tasks' logs are not kept. Raise HOWL_RECORD_LIMIT if that is honest work; else switch "
                "the user off.", user, self.limit >> 20,
            )  # fmt: skip
        elif level < RECOVERED * self.limit and user in self._above:
            self._above.remove(user)
            logger.info("Redis user %s is within HOWL_RECORD_LIMIT again.", user)
        return max(level - self.limit, 0) / self.limit * HOUR

    def allows(self, opened: Session, user: str, sizes: list[int]) -> bool:
        """Return whether rows of these sizes, in bytes, may be written, and count them; for rows nobody waits for."""
        if self.seconds_after(user, self.charge(opened, user, [])):
            self.charge(opened, user, [], len(sizes))
            return False
        self.charge(opened, user, sizes)
        return True
