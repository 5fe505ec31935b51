"""The time limits of a run that nobody can end from outside: in threads and solo workers a task checks them here.

In a prefork worker the parent ends its children by signals, and nothing here has any effect.
"""

import asyncio
import math
from collections.abc import Coroutine
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

from celery.exceptions import Ignore, SoftTimeLimitExceeded

T = TypeVar("T")

#: Seconds within which a waiting run learns that it is cancelled.
TICK = 1.0


class Stopped(Ignore):
    """The run is ended from outside: Celery stores nothing of it, nor retries it; the request reports how it ended."""


class Cancelled(Stopped):
    """Somebody cancelled the task."""


class OutOfTime(Stopped):
    """The hard time limit has passed; the one argument is that limit in seconds."""


class Limits:
    """The time limits of one run, in seconds since it began; None: no limit."""

    def __init__(self, began: float, soft: float | None, hard: float | None) -> None:
        self._soft, self._hard = soft, hard
        self._soft_at, self._hard_at = began + (soft or math.inf), began + (hard or math.inf)
        self._is_cancelled = False

    def cancel(self) -> None:
        """Have the run end at its next check; from any thread."""
        self._is_cancelled = True

    def check(self) -> None:
        """See the function of that name."""
        if self._is_cancelled:
            raise Cancelled
        if monotonic() >= self._hard_at:
            raise OutOfTime(self._hard)
        if monotonic() >= self._soft_at:
            self._soft_at = math.inf  # raised once: the task has until the hard limit to react
            raise SoftTimeLimitExceeded(self._soft)

    def patience(self) -> float:
        """See the function of that name."""
        return max(0.0, min(TICK, self._soft_at - monotonic(), self._hard_at - monotonic()))


#: The limits of the run in this context, if it has to check them.
_current: ContextVar[Limits | None] = ContextVar("howl_limits", default=None)


def begin(began: float, soft: float | None, hard: float | None) -> Limits:
    """Make this context that of a run which began at this monotonic second."""
    limits = Limits(began, soft, hard)
    _current.set(limits)
    return limits


def end() -> None:
    """Note that the run in this context has ended."""
    _current.set(None)


def check() -> None:
    """Raise SoftTimeLimitExceeded (once), OutOfTime or Cancelled if this run has passed a limit or is cancelled."""
    if (limits := _current.get()) is not None:
        limits.check()


def patience() -> float:
    """Return the seconds that the running task may wait before it checks again."""
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
