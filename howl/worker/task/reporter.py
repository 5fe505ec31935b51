"""What a run lets be seen of itself while it lasts: its newest progress and its lines, a few messages a second.

Whoever tells takes no lock: a soft time limit may strike between any two instructions of a task's main thread, and a
finalizer may tell something in the middle of a telling. Each step that is shared is one call into C: `append`,
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
#: Lines that may wait for the next message; of more, the newest.
WAITING = 1_000
#: Bytes of lines that a run may show at once, how many it regains a second, how many its last words have in any case.
BURST, RATE, LAST_WORDS = 4 * BATCH, 16_384, 8_192

Progress = tuple[float, float | None, str | None]

#: The run that goes on here. Coroutines and `asyncio.to_thread` have it too, and what runs in a copy of the context.
current: ContextVar["Sight | None"] = ContextVar("howl_sight", default=None)


class Sight:
    """What can be seen of one run, in the process that runs it; in a fork of that process it shows nothing."""

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
        #: Lines that were told, and those of them that were shown or left out.
        self._told = self._accounted = 0
        self._allowance, self._allowed_at = float(BURST), time.monotonic()

    def tell_progress(self, progress: Progress) -> None:
        """Show it now or within PACE seconds, unless there is newer by then."""
        self._progress.append(progress)
        self._ask()

    def tell_lines(self, text: str) -> None:
        """Show them now or within PACE seconds, or as many of the newest as may be."""
        lines, left_out = split(text, WAITING)
        self._lines.extend(lines)
        self._told += len(lines) + left_out
        self._ask()

    def _ask(self) -> None:
        if not self._is_queued:
            self._is_queued = self._has_told = True
            _flusher.add(self)

    def flush(self, *, last: bool = False) -> None:
        """Show what waits, in order, whoever else flushes; what nobody takes is given up with a warning."""
        if os.getpid() != self._pid:
            return
        with self._flushing:
            self._is_queued = False  # first: what is told from here on asks anew
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
    """One thread a process, started with its first word: flushes a run at once, and then as often as PACE allows.

    Not in the task's thread: a soft time limit would cut a message in two, and a parent that is busy hold up the task.
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
        # A signal that came here would not wake the main thread, whose soft time limit it may be.
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
    """From here on, what is told in this context is this run's."""
    global _flusher  # a fork has its parent's, without its thread
    if _flusher.pid != os.getpid():
        _flusher = Flusher()
    current.set(Sight(show, task_id, hostname))


def flush() -> None:
    """Show what the run that goes on here has told: its outcome is about to go out."""
    if (sight := current.get()) is not None:
        sight.flush(last=True)


def end() -> None:
    """The run that goes on here has ended: all it told is shown, and it tells no more."""
    if (sight := current.get()) is not None:
        current.set(None)
        sight.end()
