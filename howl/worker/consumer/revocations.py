"""Revocations that a worker's turns bring: tasks that must never run, and must stop where they run.

Celery's broadcast brings the same, sooner, but is lost on a worker that does not hear it: one whose connection is dead
without its knowing, or whose loop waits for its only task.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import state

logger = logging.getLogger(__name__)

Order = dict[bytes, bytes]


class Revocations:
    """Revocations to carry out, of tasks that wait here and of those that run."""

    def __init__(self, pool: Any, wake_loop: Callable[[], None]) -> None:
        self._pool = pool
        self._wake_loop = wake_loop
        self._lock = threading.Lock()
        #: Runs in children, which Celery's loop ends, and the signals to end them with.
        self._to_end: deque[tuple[Any, str]] = deque()

    def told(self, orders: list[Order]) -> None:
        """Apply orders to revoke, on the session's thread; a repeated order changes nothing."""
        for order in orders:
            try:
                self._told(order)
            except (ValueError, TypeError, AttributeError) as error:
                logger.error("An order to revoke makes no sense (%s): %r.", error, order)  # noqa: TRY400
        if self._to_end:
            # Once the worker drains, nobody knows when Celery's loop looks here again.
            self._wake_loop() if state.should_stop is None else self.carry_out()

    def _told(self, order: Order) -> None:
        task_id, signal = order.get(b"task_id", b"").decode(), order.get(b"terminate", b"").decode()
        if stamps := json.loads(order.get(b"stamps", b"{}")):
            _flag(stamps)
        elif task_id:
            state.revoked.add(task_id)
        if signal:
            self._end(_stamped(stamps) if stamps else filter(None, [state.requests.get(task_id)]), signal)

    def _end(self, requests: Iterable[Any], signal: str) -> None:
        for request in requests:
            if getattr(request, "own_limits", None) is not None:
                request.terminate(self._pool, signal)  # its run asks by itself: any thread may cancel it
            else:
                self._to_end.append((request, signal))

    def carry_out(self) -> None:
        """End the revoked runs in children; called from Celery's loop, and from `told` once the worker drains."""
        with self._lock:
            while self._to_end:
                request, signal = self._to_end.popleft()
                if request.id in state.requests:  # neither has it ended meanwhile, nor did the broadcast come first
                    logger.info("Terminating %s (%s), as was ordered.", request.id, signal)
                    request.terminate(self._pool, signal)


def _flag(stamps: dict[str, Any]) -> None:
    for name, values in stamps.items():
        known = maybe_list(state.revoked_stamps.get(name)) or []
        state.revoked_stamps[name] = [*known, *(value for value in maybe_list(values) if value not in known)]


def _stamped(stamps: dict[str, Any]) -> list[Any]:
    return [
        request
        for request in list(state.requests.values())
        if any(_meets(request.stamps or {}, name, values) for name, values in stamps.items())
    ]


def _meets(stamps: dict[str, Any], name: str, values: Any) -> bool:
    own = maybe_list(stamps.get(name)) or []
    return any(value in own for value in maybe_list(values))
