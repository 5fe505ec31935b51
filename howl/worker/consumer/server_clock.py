"""Whose clock: Redis's. A worker's own may be an hour off, and a task would be started, or thrown away, an hour wrong.

Each turn's answer says what time it is there. What is between that and this machine's clock is known to the pool's
children too: from it they reckon when a countdown or a retry is due.
"""

import mmap
import time
from datetime import UTC, datetime, timedelta
from typing import Any


class ServerClock:
    """Redis's time; made before the pool starts children, who share what it learns."""

    def __init__(self) -> None:
        self._ahead = memoryview(mmap.mmap(-1, 8)).cast("d")

    def heard(self, asked: float, answered: float, there: float) -> None:
        """Redis said `there`, at some moment between two of this machine's (all in seconds since 1970).

        What fits between the two changes nothing: a good clock stays as it is, however slow the answer.
        """
        least, most = there - answered, there - asked
        if not least <= self._ahead[0] <= most:
            self._ahead[0] = 0.0 if least <= 0 <= most else (least + most) / 2

    @property
    def ahead(self) -> float:
        """Seconds by which Redis's clock is ahead of this machine's."""
        return self._ahead[0]

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.ahead

    def own(self, moment: datetime) -> datetime:
        """What this machine's clock shows at that moment."""
        return moment - timedelta(seconds=self.ahead)

    def rule(self, app: Any) -> None:
        """From here on, Celery's application goes by this clock where it reckons times that it sends."""
        app.howl_clock = self
        app.now = lambda: (datetime.now(UTC) + timedelta(seconds=self.ahead)).astimezone(app.timezone)
