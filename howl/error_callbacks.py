"""Error callbacks of a chord that fails in the server: it notes which are due, and a worker calls them.

Only a process with a callback's code knows whether it takes the failed task's id or (request, exc, traceback); and the
server, which has access to the database, does not run what a worker wrote.
"""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from celery import Celery, Task
from celery.app.task import Context
from celery.utils.functional import maybe_list
from kombu.utils import json

from howl.outcomes import Entry, unmarked

#: Name of HOWL's own task that calls an error callback; every worker has it.
NAME = "howl.call_errback"
#: Characters of a call's id that come from the callback's signature.
OF_THE_SIGNATURE = 18


class ToldError(Exception):
    """A task's error as its worker reported it, restored only where its class may exist: in workers and clients."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document)
        self.document = document

    def __repr__(self) -> str:
        """Show it as Python shows the error itself."""
        arguments = unmarked(self.document.get("exc_message"))
        shown = arguments if isinstance(arguments, list | tuple) else [arguments]
        return f"{str(self.document.get('exc_type')).rpartition('.')[2]}({', '.join(map(repr, shown))})"

    __str__ = __repr__


@dataclass(frozen=True)
class Call:
    """An error callback that is due, for the task that failed."""

    signature: dict[str, Any]
    request: dict[str, Any]
    #: The error and its cause, as Celery prepares them.
    error: dict[str, Any]
    cause: dict[str, Any] | None

    @property
    def failed(self) -> str:
        """The id of the task that failed."""
        return str(self.request["id"])

    @cached_property
    def task_id(self) -> str:
        """The id of the call: the same when it is noted again, with a beginning that depends on the callback alone."""
        halves = (json.dumps(self.signature, sort_keys=True), self.failed)
        return str(uuid.UUID("".join(hashlib.sha256(half.encode()).hexdigest()[:16] for half in halves), version=5))


@dataclass
class Noted:
    """Entries and calls that a failing chord's end requires, none of them done yet."""

    entries: list[Entry] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


_noted: ContextVar[Noted | None] = ContextVar("howl_noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """Have this thread's result backend note entries and calls instead of doing them."""
    token = _noted.set(noted := Noted())
    try:
        yield noted
    finally:
        _noted.reset(token)


def noted() -> Noted | None:
    """Return where this thread is to note, or None."""
    return _noted.get()


def note(backend: Any, request: Any, error: Exception) -> bool:
    """Note the request's error callbacks; return False if this thread is to call them itself."""
    if (noted := _noted.get()) is None:
        return False
    # What is in the signature of a chord's body goes with it, except its own callbacks and what encloses it.
    told = {name: value for name, value in vars(request).items() if name not in ("errbacks", "options")}
    cause = error.__cause__
    documents = (backend.prepare_exception(error), backend.prepare_exception(cause) if cause else None)
    signatures = [given for given in maybe_list(request.errbacks) or [] if isinstance(given, dict)]
    noted.calls += [Call(signature, told, *documents) for signature in signatures]
    return True


def install(app: Celery) -> None:
    """Register the task that calls error callbacks."""
    app.task(name=NAME, base=Task, bind=True, shared=False, ignore_result=True)(_call)


def _call(
    self: Task, signature: dict[str, Any], request: dict[str, Any], error: dict[str, Any], cause: dict[str, Any] | None
) -> None:
    """Call an error callback of a failed chord's body, as Celery does: here and now, or published by its signature."""
    backend: Any = self.app.backend
    exception = backend.exception_to_python(error)
    exception.__cause__ = backend.exception_to_python(cause)
    backend._call_task_errbacks(Context(request, errbacks=[signature]), exception, None)  # noqa: SLF001  # Celery's own
