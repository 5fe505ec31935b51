"""Celery's request, which also tells the ledger when a run begins and when it died with its process."""

from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request

#: How a run says that its process ends with it.
DEATHS = (WorkerLostError, SystemExit, KeyboardInterrupt)


class ClaimedRequest(Request):
    """Named by the application's task class; only a worker loads it."""

    def __init_subclass__(cls) -> None:
        """Celery makes a class for each task, whose `on_success` cannot take what a thread that was left returns."""
        super().__init_subclass__()
        on_success = cls.on_success

        def on_end(self: ClaimedRequest, outcome: Any, **options: Any) -> Any:
            if isinstance(outcome, ExceptionInfo):
                return self.on_failure(outcome)
            return on_success(self, outcome, **options)

        cls.on_success = on_end

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        claims = _claims_of(self)
        if claims is not None:
            claims.began(self.claim_tag, self.id, lambda: self._beginning(pid), early=not self.task.acks_late)
        super().on_accepted(pid, time_accepted)

    def _beginning(self, pid: int) -> bytes:
        """What is told of a run that has begun: here, because most end before anybody need hear that they began."""
        document: bytes = self.task.backend.beginning(self._context, pid)
        return document

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        claims = _claims_of(self)
        if claims is not None and isinstance(_cause(exc_info), DEATHS):
            claims.died(self.claim_tag)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _success_was_stored(self) -> Any:
        """Celery asks its backend, which a worker cannot read: what the child had said is here."""
        claims = _claims_of(self)
        return super()._success_was_stored() if claims is None else claims.success_of(self.claim_tag, self.id)

    @property
    def claim_tag(self) -> str:
        """The claim's tag."""
        return str(self.message.delivery_tag)


def _cause(exc_info: Any) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _claims_of(request: Request) -> Any:
    return getattr(request.message.channel, "claims", None)
