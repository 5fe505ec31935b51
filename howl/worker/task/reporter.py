"""What a run shows of itself while it lasts: its newest progress and its log lines, a few messages a second.

Reporting takes no lock: a soft time limit may strike between any two instructions of a task's main thread, and a
finalizer may report something in the middle of another report. Each shared step is one call into C: `append`,
`popleft`, `put`.
"""

import json
import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from howl.worker.task.lines import BATCH, batches, newest, split

logger = logging.getLogger(__name__)

#: Seconds between two messages of a run.
PACE = 0.25
#: Most lines that wait for the next message; of more, the newest do.
WAITING = 1_000
#: Bytes of lines that a run may show at once, that it regains a second, and that its last message has in any case.
BURST, RATE, LAST_WORDS = 4 * BATCH, 16_384, 8_192

Progress = tuple[float, float | None, str | None]

#: The run in this context, which coroutines, `asyncio.to_thread` and what runs in a copy of the context have too.
current: ContextVar["Sight | None"] = ContextVar("howl_sight", default=None)


class Sight:
    """What one run shows of itself, in the process that runs it; in a fork of that process it shows nothing."""

    def __init__(self, show: Callable[[bytes], None], task_id: str, hostname: str) -> None:
        self.is_over = False
        #: When the next message is due, on the monotonic clock.
        self.due = 0.0
        self._show, self._task_id, self._hostname = show, task_id, hostname
        self._pid = os.getpid()
        self._progress: deque[Progress] = deque(maxlen=1)
        self._lines: deque[str] = deque(maxlen=WAITING)
        self._is_queued = self._has_told = False
        self._flushing = threading.Lock()
        self._number = 0
        #: Lines that were reported, and those of them that were shown or left out.
        self._told = self._accounted = 0
        self._allowance, self._allowed_at = float(BURST), time.monotonic()

    def tell_progress(self, progress: Progress) -> None:
        """Show progress now or within PACE seconds, unless there is newer by then."""
        self._progress.append(progress)
        self._ask()

    def tell_lines(self, text: str) -> None:
        """Show lines now or within PACE seconds, or as many of the newest as are allowed."""
        lines, left_out = split(text, WAITING)
        self._lines.extend(lines)
        self._told += len(lines) + left_out
        self._ask()

    def _ask(self) -> None:
        if not self._is_queued:
            self._is_queued = self._has_told = True
            _flusher.add(self)

    def flush(self, *, last: bool = False) -> None:
        """Show what waits, in order even if another thread flushes; if nobody takes it, give up with a warning."""
        if os.getpid() != self._pid:
            return
        with self._flushing:
            self._is_queued = False  # first: what is reported from here on asks anew
            self.due = time.monotonic() + PACE
            try:
                for body in self._bodies(last):
                    self._show(self._event(body))
            except OSError as error:
                self.is_over = True
                logger.warning("Nothing more is shown of task %s while it runs: %s.", self._task_id, error)

    def end(self) -> None:
        self.is_over = True
        if self._has_told:  # which most runs have not
            self.flush(last=True)

    def _bodies(self, last: bool) -> Iterator[dict[str, Any]]:
        with suppress(IndexError):
            done, total, note = self._progress.popleft()
            yield {"type": "task-progress", "done": done, "total": total, "note": note}
        told = self._told  # before the lines are taken: those that come meanwhile count next time
        taken = [self._lines.popleft() for _ in range(len(self._lines))]
        if not taken:
            return
        shown, size = newest(taken, self._room(last))
        self._allowance -= size
        dropped = max(0, told - self._accounted - len(taken)) + len(taken) - len(shown)
        self._accounted += dropped + len(shown)
        for lines in batches(shown):
            yield {"type": "task-log", "lines": lines, "dropped": dropped}
            dropped = 0

    def _room(self, last: bool) -> float:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) * RATE)
        self._allowed_at = now
        return max(self._allowance, LAST_WORDS) if last else self._allowance

    def _event(self, body: dict[str, Any]) -> bytes:
        self._number += 1
        event = {
            "uuid": self._task_id,
            "hostname": self._hostname,
            "timestamp": time.time(),
            "utcoffset": (time.altzone if time.localtime().tm_isdst else time.timezone) // 3600,
            "pid": self._pid,
            "number": self._number,
        }
        return json.dumps(body | event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Flusher:
    """One thread a process, started by its first report: it flushes a run at once, then as often as PACE allows.

    Not in the task's thread: a soft time limit would cut a message in two, and a busy parent would hold up the task.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._asked: queue.SimpleQueue[Sight] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, sight: Sight) -> None:
        self._asked.put(sight)
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="howl-sight", daemon=True)
            with suppress(RuntimeError):  # no more threads here: what waits is shown when the run ends
                thread.start()
                self._thread = thread

    def _serve(self) -> None:
        # A signal that came here would not wake the main thread, and it may be that thread's soft time limit.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        waiting: set[Sight] = set()
        while True:
            self._take(waiting)
            for sight in [sight for sight in waiting if sight.due <= time.monotonic()]:
                waiting.remove(sight)
                sight.flush()

    def _take(self, waiting: set[Sight]) -> None:
        """Wait for a run that asks, or for one that is due."""
        patience = max(0.0, min(sight.due for sight in waiting) - time.monotonic()) if waiting else None
        with suppress(queue.Empty):
            waiting.add(self._asked.get(timeout=patience))


_flusher = Flusher()


def begin(show: Callable[[bytes], None], task_id: str, hostname: str) -> None:
    """Make what is reported in this context from here on this run's."""
    global _flusher  # a fork has its parent's, without its thread
    if _flusher.pid != os.getpid():
        _flusher = Flusher()
    current.set(Sight(show, task_id, hostname))


def flush() -> None:
    """Show what the run in this context has reported: its outcome is about to be sent."""
    if (sight := current.get()) is not None:
        sight.flush(last=True)


def end() -> None:
    """End the run in this context: show all that it reported, and accept no more."""
    if (sight := current.get()) is not None:
        current.set(None)
        sight.end()
