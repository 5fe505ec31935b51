"""When a run must end, where nobody can end it from outside: in threads and solo workers a task asks here, and is told.

In a prefork worker the parent ends its children by signals, and nothing here has anything to say.
"""

import asyncio
import math
from collections.abc import Coroutine
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

from celery.exceptions import Ignore, SoftTimeLimitExceeded

T = TypeVar("T")

#: Seconds within which a run that waits hears that it is cancelled.
TICK = 1.0


class Stopped(Ignore):
    """The run is ended from outside: Celery stores nothing of it, nor tries it again; the request says how it ended."""


class Cancelled(Stopped):
    """Somebody cancelled the task."""


class OutOfTime(Stopped):
    """The hard time limit has passed; its one argument says how many seconds that was."""


class Limits:
    """What one run may take, in seconds since it began; None: as long as it likes."""

    def __init__(self, began: float, soft: float | None, hard: float | None) -> None:
        self._soft, self._hard = soft, hard
        self._soft_at, self._hard_at = began + (soft or math.inf), began + (hard or math.inf)
        self._is_cancelled = False

    def cancel(self) -> None:
        """Have the run end when it next asks; from any thread."""
        self._is_cancelled = True

    def check(self) -> None:
        """See the function of that name."""
        if self._is_cancelled:
            raise Cancelled
        if monotonic() >= self._hard_at:
            raise OutOfTime(self._hard)
        if monotonic() >= self._soft_at:
            self._soft_at = math.inf  # said once: what the task does about it, it has until the hard limit for
            raise SoftTimeLimitExceeded(self._soft)

    def patience(self) -> float:
        """See the function of that name."""
        return max(0.0, min(TICK, self._soft_at - monotonic(), self._hard_at - monotonic()))


#: Those of the run that goes on here, if it has to ask.
_current: ContextVar[Limits | None] = ContextVar("howl_limits", default=None)


def begin(began: float, soft: float | None, hard: float | None) -> Limits:
    """From here on, this context is that of a run which began at this monotonic second."""
    limits = Limits(began, soft, hard)
    _current.set(limits)
    return limits


def end() -> None:
    """The run that went on here has ended."""
    _current.set(None)


def check() -> None:
    """Raise SoftTimeLimitExceeded (once), OutOfTime or Cancelled when that is what has become of this run."""
    if (limits := _current.get()) is not None:
        limits.check()


def patience() -> float:
    """Seconds that the running task may wait before it asks again."""
    return TICK if (limits := _current.get()) is None else limits.patience()


async def within(work: Coroutine[Any, Any, T]) -> T:
    """Await something for as long as this run may go on."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            check()
            await asyncio.wait({task}, timeout=patience())
    finally:
        task.cancel()
    return await task
