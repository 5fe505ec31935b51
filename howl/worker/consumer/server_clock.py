"""Redis's clock, which workers go by: their own may be an hour off, and tasks would start, or expire, an hour wrong.

Each turn's answer carries Redis's time. Its difference from this machine's clock is shared with the pool's children,
which compute from it when a countdown or a retry is due.
"""

import mmap
import time
from datetime import UTC, datetime, timedelta
from typing import Any

#: Seconds by which turn.lua's time may be behind Redis's: the rest of its last millisecond.
MILLISECOND = 0.001


class ServerClock:
    """Redis's time; made before the pool starts children, which share what it learns."""

    def __init__(self) -> None:
        self._ahead = memoryview(mmap.mmap(-1, 8)).cast("d")

    def heard(self, asked: float, answered: float, there: float) -> None:
        """Learn that Redis's time was `there`, whole milliseconds, at some moment between two of this machine's.

        All are seconds since 1970. A time that fits between the two changes nothing: a good clock stays as it is,
        however slow the answer.
        """
        least, most = there - answered, there + MILLISECOND - asked
        if not least <= self._ahead[0] <= most:
            self._ahead[0] = 0.0 if least <= 0 <= most else (least + most) / 2

    @property
    def ahead(self) -> float:
        """Seconds by which Redis's clock is ahead of this machine's."""
        return self._ahead[0]

    def time(self) -> float:
        """Return Redis's time in seconds since 1970."""
        return time.time() + self.ahead

    def own(self, moment: datetime) -> datetime:
        """Return what this machine's clock shows at that moment."""
        return moment - timedelta(seconds=self.ahead)

    def rule(self, app: Any) -> None:
        """Have Celery's application go by this clock from here on where it computes times that it sends."""
        app.howl_clock = self
        app.now = lambda: (datetime.now(UTC) + timedelta(seconds=self.ahead)).astimezone(app.timezone)
