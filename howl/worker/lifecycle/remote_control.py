"""Commands to leave, over Celery's remote control: `howl workers drain` and `stop`, heard while draining as well."""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown
from celery.utils.collections import AttributeDict
from celery.worker import state as worker_state
from celery.worker.control import Panel, control_command

from howl.worker.lifecycle.shutdown import Leaving

logger = logging.getLogger(__name__)

#: Commands that a draining worker still carries out.
HEARD = ("howl_drain", "howl_stop", "ping", "revoke", "terminate", "revoke_by_stamped_headers")
#: Seconds after which a command to stop is carried out, even if its answer is not sent yet.
ANSWER = 4.0
#: Seconds for which a draining worker may just leave, before it is worth listening again.
PATIENCE = 0.5


@control_command(name="howl_drain")
def drain(state: Any) -> dict[str, Any]:
    """Take no more tasks, let those that run end, and leave."""
    leaving = _leaving(state)
    logger.warning("Asked over remote control to drain.")
    return {"ok": "drains" if leaving.drain("howl_drain") else "drains already"} | _running()


@control_command(name="howl_stop")
def stop(state: Any) -> dict[str, Any]:
    """Put back what runs as soon as the answer is out, and leave."""
    leaving, answered = _leaving(state), threading.Event()
    logger.warning("Asked over remote control to stop.")
    threading.Thread(target=_stop, args=(leaving, answered), name="howl-stop").start()
    _soon(state)(answered.set)
    return {"ok": "stops"} | _running()


def _stop(leaving: Leaving, answered: threading.Event) -> None:
    answered.wait(ANSWER)
    leaving.put_back_at_once()


def _leaving(state: Any) -> Leaving:
    leaving: Leaving = state.consumer.controller.howl_leaving
    return leaving


def _soon(state: Any) -> Callable[[Callable[[], None]], None]:
    """Return what has a function called once this command is answered: by Celery's loop, or by the listener."""
    return state.get("soon") or state.consumer.hub.call_soon


def _running() -> dict[str, int]:
    return {"running": len(worker_state.active_requests)}


class Orders(bootsteps.StartStopStep):
    """The boot step that has the commands registered, with this module, and heard after Celery's loop has ended."""

    requires = (Leaving,)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._over = threading.Event()
        worker_shutdown.connect(self._end)  # not the step's stop, which comes before the pool's

    def close(self, parent: Any) -> None:
        if parent.consumer is not None:
            DrainListener(parent.consumer, self._over).start()

    def _end(self, **_: Any) -> None:
        self._over.set()


class DrainListener(threading.Thread):
    """The thread that hears commands while the worker's last tasks end."""

    def __init__(self, consumer: Any, over: threading.Event) -> None:
        super().__init__(name="howl-ear", daemon=True)
        self.consumer, self.over = consumer, over

    def run(self) -> None:
        app = self.consumer.app
        while not self.over.wait(PATIENCE * random.uniform(0.8, 1.2)):  # noqa: S311  # jitter, no secret
            with app.connection_for_read() as connection:
                try:
                    self._listen(connection)
                except (*connection.connection_errors, *connection.channel_errors) as error:
                    logger.info("Remote control does not hear Redis (%s): listening again in a moment.", error)

    def _listen(self, connection: Any) -> None:
        app, hostname = self.consumer.app, self.consumer.hostname
        soon: deque[Callable[[], None]] = deque()
        known = AttributeDict(app=app, hostname=hostname, consumer=self.consumer, tset=set, soon=soon.append)
        orders = {name: Panel.data[name] for name in HEARD}
        node = app.control.mailbox.Node(hostname, handlers=orders, state=known, channel=connection.channel())
        node.listen(callback=_carry_out(node, soon))
        while not self.over.is_set():
            try:
                connection.drain_events(timeout=1.0)
            except TimeoutError:
                continue


def _carry_out(node: Any, soon: deque[Callable[[], None]]) -> Any:
    def carry_out(body: Any, message: Any) -> None:
        if body.get("method") in node.handlers:  # a worker that leaves ignores all others
            node.handle_message(body, message)
            while soon:
                soon.popleft()()

    return carry_out
