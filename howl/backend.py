"""The Celery result backend: outcomes are appended to a stream in Redis, results are read from PostgreSQL."""

import importlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import states
from celery._state import get_current_task
from celery.backends.base import BaseBackend, SyncBackendMixin
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import result_from_tuple
from kombu.exceptions import EncodeError
from kombu.utils import json

from howl import error_callbacks
from howl.celery import settings_of
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.errors import NotGranted, OutcomeTooLarge
from howl.node_names import worker_id_of
from howl.outcomes import (
    ENTRY_FIELD,
    LATEST_ATTEMPT,
    ChordCreated,
    Entry,
    Outcome,
    PartsAdded,
    encode,
    in_pieces,
    is_id,
)
from howl.task_ids import check_signatures, recordable, texts

logger = logging.getLogger(__name__)

#: Seconds between two polls of an awaited result: short at first, then longer to spare PostgreSQL.
FIRST_LOOK, LAST_LOOK = 0.02, 0.5
#: Most characters kept of a traceback: its end, which tells most.
TRACEBACK_LIMIT = 20_000
#: Most children recorded of a task; bytes allowed for what an outcome needs besides its result.
CHILDREN_KEPT, ENVELOPE = 1000, 4096


_stream: ContextVar[str | None] = ContextVar("howl_outcomes_stream", default=None)


@contextmanager
def telling_in(stream: str) -> Iterator[None]:
    """Append outcomes from this thread to that stream in Redis, instead of its own.

    The server uses it for outcomes that a worker's document makes it write: they must not count as the server's own.
    """
    token = _stream.set(stream)
    try:
        yield
    finally:
        _stream.reset(token)


class HowlBackend(BaseBackend, SyncBackendMixin):
    """A backend that writes outcomes wherever a task runs, and reads results only where a database is configured."""

    persistent = True
    supports_native_join = True

    @cached_property
    def settings(self) -> Settings:
        return settings_of(self.app)

    @cached_property
    def redis(self) -> redis.Redis:
        return redis_client(self.settings)

    @cached_property
    def _started(self) -> dict[str, float]:
        """Monotonic time in seconds at which each running task started, in the process or thread that runs it."""
        return {}

    def as_uri(self, include_password: bool = False) -> str:  # noqa: ARG002  # Celery's signature
        return "howl://"

    # --- writing -----------------------------------------------------------------------------------------------

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **options: Any
    ) -> Any:
        """Write an outcome; in a worker not the start of a run, which its parent process knows and reports."""
        if state == states.STARTED:
            self._started[task_id] = time.monotonic()
            if getattr(self.app, "howl_outbox", None) is not None:
                return result
        return super().store_result(task_id, result, state, traceback, request, **options)

    def beginning(self, request: Any, pid: int) -> bytes:
        """Return the encoded outcome for a run that began in the process `pid`."""
        outcome = replace(self._outcome(request.id, None, states.STARTED, None, request), pid=pid)
        try:
            document = encode(outcome)
        except EncodeError:  # arguments that could be read may be nested too deeply to be written
            return encode(_without_arguments(outcome))
        return document if len(document) <= self.settings.outcome_limit else encode(_without_arguments(outcome))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        self.append(self._outcome(task_id, result, state, traceback, request), _tag_of(request))

    def append(self, entry: Entry, tag: str = "") -> None:
        """Hand an entry to this worker's outbox with its message's tag; outside a worker, append it to Redis.

        Raises OutcomeTooLarge, EncodeError or redis's errors.
        """
        if (noted := error_callbacks.noted()) is not None:
            noted.entries.append(entry)
            return
        document = encode(entry)
        if isinstance(entry, Outcome) and len(document) > self.settings.outcome_limit:
            document = self._fitting(entry)
        outbox = getattr(self.app, "howl_outbox", None)
        if outbox is not None:
            outbox(entry, document, tag)
        else:
            self.redis.xadd(_stream.get() or self.settings.key("outcomes"), {ENTRY_FIELD: document})

    def _fitting(self, outcome: Outcome) -> bytes:
        """Return a shorter document: only the result counts against the limit; a task does not fail for the rest."""
        limit = self.settings.outcome_limit
        bare = replace(outcome, args=None, kwargs=None, traceback=None, children=None)
        if (size := len(encode(bare))) > limit + ENVELOPE:
            raise OutcomeTooLarge(
                f"The result has {size:,} bytes and {limit:,} are allowed: "
                "return less, or write a file and return where it is."
            )
        # The recorder accepts up to twice the limit.
        fuller = (encode(each) for each in (_without_arguments(outcome), replace(bare, traceback=outcome.traceback)))
        return next((document for document in fuller if len(document) <= 2 * limit), encode(bare))

    def _outcome(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> Outcome:
        children, left_out = self._children(request) if state in states.READY_STATES else (None, None)
        return Outcome(
            task_id=str(task_id),
            state=state,
            at=datetime.now(UTC).isoformat(),
            attempt=LATEST_ATTEMPT if request is None else (getattr(request, "retries", None) or 0) + 1,
            result=result,
            traceback=str(traceback)[-TRACEBACK_LIMIT:] if traceback else None,
            name=_name(getattr(request, "task", None)),
            args=_as(list, request, "args"),
            kwargs=_as(dict, request, "kwargs"),
            queue=_name((getattr(request, "delivery_info", None) or {}).get("routing_key")),
            worker_id=_worker_id(request),
            parent_id=_name(getattr(request, "parent_id", None)),
            root_id=_name(getattr(request, "root_id", None)),
            group_id=_name(getattr(request, "group", None)),
            children=children,
            children_left_out=left_out,
            runtime=self._runtime(task_id, state),
            pid=os.getpid(),
        )

    def _children(self, request: Any) -> tuple[list[Any] | None, int | None]:
        """Return Celery's tuples of the first tasks that this one started, and how many more it started."""
        request = request or getattr(get_current_task(), "request", None)
        if request is None:
            return None, None
        kept: list[Any] = []
        left_out, room = 0, self.settings.outcome_limit // 4
        for child in getattr(request, "children", None) or ():
            told = None if left_out or len(kept) >= CHILDREN_KEPT else child.as_tuple()
            if told is None or (room := room - len(json.dumps(told))) < 0:
                left_out += len(leaves(child))
            else:
                kept.append(told)
        return kept, left_out or None

    def _runtime(self, task_id: str, state: str) -> float | None:
        begun = self._started.get(task_id)
        if state in states.READY_STATES or state == states.RETRY:
            self._started.pop(task_id, None)
        return time.monotonic() - begun if begun is not None else None

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """Record every end: a task that ignores its result is recorded without one, unless a chord waits for it."""
        store_result = store_result or bool(getattr(request, "chord", None))
        if not _is_eager(request, store_result):
            self.store_result(task_id, result if store_result else None, state, request=request)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Record every failure, whatever `ignore_result` says."""
        stored = not _is_eager(request, store_result)
        super().mark_as_failure(task_id, exc, traceback, request, stored, call_errbacks, state)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:  # fmt: skip
        """Record a revoke only with a request: it reaches every worker, and only the task's holder may report it."""
        if request is not None:
            super().mark_as_revoked(task_id, reason, request, store_result, state)

    def encode_result(self, result: Any, state: str) -> Any:
        """Encode a result; replace an exception's message that is too large, or not JSON, by its text, cut."""
        encoded = super().encode_result(result, state)
        if state in self.EXCEPTION_STATES and isinstance(encoded, dict):
            encoded["exc_message"] = _short(encoded.get("exc_message"), self.settings.outcome_limit // 8)
        return encoded

    def prepare_exception(self, exc: BaseException, serializer: Any = None) -> Any:
        """Prepare an exception; pass on unchanged what a worker reported of one."""
        return (
            exc.document if isinstance(exc, error_callbacks.ToldError) else super().prepare_exception(exc, serializer)
        )

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Retry while Redis is away or not ready; the recorder expects appends that a lost answer has doubled."""
        return isinstance(exc, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError)

    # --- chords: the recorder counts the parts and submits the body; nothing polls -----------------------------

    def apply_chord(self, header_result_args: tuple[Any, ...], body: Any, **_: Any) -> None:
        """Report a chord to the recorder before its parts are published; raises ChordRefused."""
        header = self.app.GroupResult(*header_result_args)
        document = dict(body)
        check_signatures(document)
        parts = [recordable(part) for part in leaves(header)]
        group_id = recordable(header.id)
        entry = ChordCreated(group_id=group_id, parts=parts, header=texts(_shape(header)), body=document)
        for piece in [*in_pieces(entry, self.settings.outcome_limit)]:
            self._tell(piece)

    def _tell(self, entry: Entry) -> None:
        """Append an entry, retrying once because an idle connection may have been closed; a second error is raised."""
        try:
            self.append(entry)
        except redis.exceptions.ConnectionError:
            self.append(entry)

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """Report more parts of the running task's chord to the recorder; raises NotGranted or InvalidRequest."""
        user = urlsplit(self.settings.redis()).username
        if user not in (None, "", "default"):
            raise NotGranted(
                f"This worker logs in to Redis as {user}, and may add nothing to a chord that may be another's: "
                "return self.replace(…) by a group or chord instead."
            )
        request = get_current_task().request
        added = PartsAdded(group_id=group_id, task_id=request.id, parts=[recordable(part) for part in leaves(result)])
        self._ensure_retryable(self.append, added, _tag_of(request))

    def _call_task_errbacks(self, request: Any, exc: Exception, traceback: Any) -> None:
        """Call error callbacks as Celery does, except in the server, which notes them."""
        if not error_callbacks.note(self, request, exc):
            super()._call_task_errbacks(request, exc, traceback)

    def get_state(self, task_id: str) -> str:
        """Return PENDING in a worker.

        Only failing chains ask there, so that chords count no part twice; the recorder counts distinct tasks itself.
        """
        if getattr(self.app, "howl_outbox", None) is not None:
            return str(states.PENDING)
        return str(super().get_state(task_id))

    # --- reading -----------------------------------------------------------------------------------------------

    @cached_property
    def reader(self) -> Any:
        """The reader of results, imported at first use: a burst worker has neither PostgreSQL code nor the address."""
        url = self.settings.database()
        return importlib.import_module("howl.queries.results").Reader(url)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        meta = self.reader.task_meta(recordable(task_id))
        if meta["status"] in self.EXCEPTION_STATES:
            meta["result"] = self.exception_to_python(meta["result"])
        return meta

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = LAST_LOOK,
        no_ack: bool = True, on_interval: Any = None, on_message: Any = None,  # noqa: ARG002  # Celery's signature
    ) -> dict[str, Any]:  # fmt: skip
        """Wait at most `timeout` seconds until the task has ended; raises Celery's TimeoutError."""
        self._ensure_not_eager()
        told: Any = None
        for _ in _looks(timeout, interval, on_interval):
            meta: dict[str, Any] = self.get_task_meta(task_id)
            state = (meta["status"], meta["result"])
            if on_message is not None and state != told and state[0] != states.PENDING:
                on_message(meta)
                told = state
            if meta["status"] in states.READY_STATES:
                return meta
        raise CeleryTimeoutError(f"Task {task_id} has not ended within {timeout} s.")

    def wait_for_pending(
        self, result: Any, timeout: float | None = None, interval: float = LAST_LOOK, no_ack: bool = True,
        on_message: Any = None, on_interval: Any = None, callback: Any = None, propagate: bool = True,
    ) -> Any:  # fmt: skip
        """Wait likewise, and return the result or raise the exception; `on_message` gets each state that is seen."""
        meta = self.wait_for(result.id, timeout, interval, no_ack, on_interval, on_message)
        result._maybe_set_cache(meta)  # noqa: SLF001  # as Celery's own backends do
        return result.maybe_throw(propagate=propagate, callback=callback)

    def get_many(
        self, task_ids: Iterable[str], timeout: float | None = None, interval: float | None = LAST_LOOK,
        no_ack: bool = True, on_message: Any = None, on_interval: Any = None,  # noqa: ARG002  # Celery's signature
        max_iterations: int | None = None, **_: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """Yield each task and how it ended, as soon as it has ended; raises Celery's TimeoutError."""
        waiting = dict.fromkeys(task_ids)
        for look in _looks(timeout, interval or LAST_LOOK, on_interval):
            for task_id in list(waiting):
                meta = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    del waiting[task_id]
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
            if not waiting or look == max_iterations:
                return
        raise CeleryTimeoutError(f"{len(waiting)} tasks have not ended within {timeout} s.")

    def _forget(self, task_id: str) -> None:
        self.reader.forget(recordable(task_id))

    # --- saved groups: in Redis for `result_expires`, where clients and workers alike can read them ------------

    def _group_key(self, group_id: str) -> str:
        return self.settings.key(f"group:{group_id}")

    def _save_group(self, group_id: str, result: Any) -> Any:
        self.redis.set(
            self._group_key(group_id), json.dumps(result.as_tuple()), ex=int(self.expires) if self.expires else None
        )
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        saved = self.redis.get(self._group_key(group_id))
        return {"result": result_from_tuple(json.loads(saved), self.app)} if saved else None

    def _delete_group(self, group_id: str) -> None:
        self.redis.delete(self._group_key(group_id))


def _looks(timeout: float | None, interval: float, on_interval: Any) -> Iterator[int]:
    """Count polls from 1, at short intervals at first, until the seconds are over; one more poll follows."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_LOOK
    for look in count(1):
        over = deadline is not None and time.monotonic() >= deadline
        yield look
        if on_interval:
            on_interval()
        if over:
            return
        time.sleep(pause if deadline is None else max(0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, max(interval, FIRST_LOOK), LAST_LOOK)


def _without_arguments(outcome: Outcome) -> Outcome:
    return replace(outcome, args=None, kwargs=None)


def leaves(result: Any) -> list[str]:
    """Return ids of the tasks that a result stands for: a group's members, their members, and so on."""
    members = getattr(result, "results", None)
    return [result.id] if members is None else [leaf for member in members for leaf in leaves(member)]


def _shape(result: Any) -> list[Any]:
    """Return Celery's `as_tuple()` without the parents, which each member of a group would repeat."""
    members = getattr(result, "results", None)
    return [[result.id, None], None if members is None else [_shape(member) for member in members]]


def _is_eager(request: Any, store_result: bool) -> bool:
    return bool(not store_result and getattr(request, "is_eager", False))


def _as(kind: type, request: Any, name: str) -> Any:
    value = getattr(request, name, None)
    return None if value is None else kind(value)


def _tag_of(request: Any) -> str:
    """Return the message's tag: the request's own, or that of the task that stores something for another."""
    for known in (request, getattr(get_current_task(), "request", None)):
        tag = (getattr(known, "properties", None) or {}).get("delivery_tag")
        if tag:
            return str(tag)
    return ""


def _worker_id(request: Any) -> str | None:
    node_name = getattr(request, "hostname", None)
    return _name(worker_id_of(node_name)) if node_name else None


def _name(given: Any) -> str | None:
    """Return a valid id or name, else None: another client's bad value must not get the outcome refused."""
    given = texts(given)
    return given if is_id(given) else None


def _short(arguments: Any, limit: int) -> Any:
    try:
        if len(json.dumps(arguments)) <= limit:
            return arguments
    except (EncodeError, TypeError, ValueError):
        pass  # not JSON, but its text is
    return [f"{str(arguments)[: limit // 8]} …"]
