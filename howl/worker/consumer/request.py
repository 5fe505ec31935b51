"""Celery's request, extended to report to the session when a run begins and when it died with its process.

A run within this very process, as in a thread, cannot be ended from outside: its request has the limits it asks for.
"""

import logging
import os
from datetime import datetime
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from howl.worker.task import time_limits

logger = logging.getLogger(__name__)

#: Errors by which a run reports that its process ends with it.
DEATHS = (WorkerLostError, SystemExit, KeyboardInterrupt)


class ClaimedRequest(Request):
    """The request class of every task in a worker, set in howl/worker/consumer/adapter.py."""

    #: The limits of a run in this process; None for one in a child.
    own_limits: time_limits.Limits | None = None

    def __init_subclass__(cls) -> None:
        """Wrap `on_success`: that of the class Celery makes for each task cannot take the error that left a thread."""
        super().__init_subclass__()
        on_success = cls.on_success

        def on_end(self: ClaimedRequest, outcome: Any, **options: Any) -> Any:
            if self.own_limits is not None:
                time_limits.end()
            if isinstance(outcome, ExceptionInfo):
                return self.on_failure(outcome)
            return on_success(self, outcome, **options)

        cls.on_success = on_end

    @property
    def eta(self) -> datetime | None:
        """The ETA as this machine's clock will show it: Celery's timer goes by that."""
        return self._eta and self.app.howl_clock.own(self._eta)

    def maybe_expire(self) -> bool:
        """Return whether it is too late to start the task, by Redis's time; if so, mark it revoked."""
        is_late = bool(self.expires) and self.app.now() > self.expires
        if is_late:
            state.revoked.add(self.id)
        return is_late

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        claims = _claims_of(self)
        if claims is not None:
            if pid == os.getpid():  # a thread, or solo
                self.own_limits = time_limits.begin(time_accepted, *self._seconds(claims.pool))
            claims.began(self.claim_tag, self.id, lambda: self._beginning(pid), early=not self.task.acks_late)
        super().on_accepted(pid, time_accepted)

    def _seconds(self, pool: Any) -> tuple[float | None, float | None]:
        """Return the soft and the hard time limit (seconds), with the precedence of Celery's prefork pool."""
        hard, soft = self.time_limits
        soft = soft or self.task.soft_time_limit or pool.options.get("soft_timeout")
        return soft, hard or self.task.time_limit or pool.options.get("timeout")

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if self.own_limits is None:
            super().terminate(pool, signal)
            return
        logger.info("Task %s is cancelled and ends when it next asks, for threads cannot be stopped.", self.id)
        self.own_limits.cancel()

    def _beginning(self, pid: int) -> bytes:
        """Make the outcome that says the run has begun; only when it is sent, for most runs end before that."""
        document: bytes = self.task.backend.beginning(self._context, pid)
        return document

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        claims, cause = _claims_of(self), _cause(exc_info)
        # As Celery does for a process that it ended.
        if isinstance(cause, time_limits.Cancelled):
            return self._announce_revoked("terminated", True, "SIGTERM", False)
        if isinstance(cause, time_limits.OutOfTime):
            return self.on_timeout(False, cause.args[0])
        if claims is not None and isinstance(cause, DEATHS):
            claims.died(self.claim_tag)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _success_was_stored(self) -> Any:
        """Return the success that the child reported, if any: Celery asks its backend, which a worker cannot read."""
        claims = _claims_of(self)
        return super()._success_was_stored() if claims is None else claims.success_of(self.claim_tag, self.id)

    @property
    def claim_tag(self) -> str:
        """The tag of the claim on this message."""
        return str(self.message.delivery_tag)


def _cause(exc_info: Any) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _claims_of(request: Request) -> Any:
    return getattr(request.message.channel, "claims", None)
