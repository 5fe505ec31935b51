"""A worker's shutdown: the first signal lets running tasks end, a second puts them back at once, whatever the pool."""

import logging
import os
import signal
import sys
import threading
from typing import Any

from celery import bootsteps, signals
from celery.apps.worker import safe_say
from celery.exceptions import WorkerTerminate
from celery.worker import state

from howl.worker.consumer.pool import pids

logger = logging.getLogger(__name__)

#: The first of these drains, another puts back; SIGQUIT puts back at once.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class Leaving(bootsteps.StartStopStep):
    """The boot step that replaces what Celery does on a signal: nothing, with threads or on a second SIGTERM."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.worker = parent
        self._pid = os.getpid()
        self._asked = False
        self._gone = False
        parent.howl_leaving = self

    def start(self, parent: Any) -> None:  # noqa: ARG002  # Celery's signature
        if threading.current_thread() is threading.main_thread():  # others may not: a worker within a test, say
            for number in SIGNALS:
                signal.signal(number, self._told)

    def close(self, parent: Any) -> None:
        """Take no more tasks: what is held and has not begun goes to other workers, while the rest ends."""
        self.drain("shutdown")  # Celery's remote command begins here; a signal, or our command, has asked before
        claims = self._claims()
        if claims is not None:
            claims.release()
        # Celery forgets the status of an end that its consumer asks for, such as one for want of files.
        ending = sys.exception()
        if isinstance(ending, WorkerTerminate) and parent.exitcode is None:
            parent.exitcode = ending.code

    def _told(self, number: int, _: Any) -> None:
        """Handle a signal, in the main thread between any two instructions: whatever takes a lock happens elsewhere."""
        if os.getpid() != self._pid:
            return  # a child that was started later, whose parent gets the signal as well
        if number == signal.SIGQUIT or not self.drain(signal.Signals(number).name):
            threading.Thread(target=self.put_back_at_once, name="howl-leaving").start()

    def drain(self, name: str) -> bool:
        """Take no more tasks, because of `name`; return False if that was asked before."""
        if self._asked:
            return False
        self._asked = True
        safe_say("worker: Taking no more tasks; those that run may end. Another signal puts them back at once.")
        signals.worker_shutting_down.send(sender=self.worker.hostname, sig=name, how="Warm", exitcode=0)
        state.should_stop = self._status()
        claims = self._claims()
        if claims is not None:
            claims.session.wake_loop()
        return True

    def _claims(self) -> Any:
        return getattr(self.worker.consumer, "howl_claims", None)

    def _status(self) -> int:
        """Return the exit status: 1 if the worker ends because it cannot go on, for it has not done its work."""
        claims = self._claims()
        return 1 if claims is not None and claims.session.failed else 0

    def put_back_at_once(self) -> None:
        """Put running tasks back, once, in a thread of its own; the process ends with it.

        Children are held still first, so that none ends, or goes on with, what another worker has by then.
        """
        if self._gone:
            return
        self._gone = True
        logger.warning("Putting running tasks back on the queue, and leaving.")
        running = pids(self.worker.pool)
        try:
            _signal_all(running, signal.SIGSTOP)
            claims = self._claims()
            if claims is not None:
                claims.hand_back()
            signals.worker_shutdown.send(sender=self.worker)
        finally:
            _signal_all(running, signal.SIGKILL)
            logging.shutdown()
            # Threads cannot be stopped, and a main thread that waits for them does not end.
            os._exit(self._status())


def _signal_all(running: list[int], number: signal.Signals) -> None:
    for pid in running:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it has ended
