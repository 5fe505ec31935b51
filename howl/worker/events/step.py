"""Reports over NATS: that a worker is online, or leaves, and what its tasks do. No correctness depends on them."""

import logging
import os
from typing import Any

from celery import bootsteps
from celery.signals import worker_ready, worker_shutdown
from celery.utils.sysinfo import load_average
from celery.worker import state

import howl
from howl.worker.events.buffer import EventBuffer
from howl.worker.events.delivery import EventDelivery
from howl.worker.events.dispatcher import EventDispatcher, encode
from howl.worker.events.publisher import EventPublisher
from howl.worker.lifecycle.identity import Identity

logger = logging.getLogger(__name__)

#: Turns off Celery's own, over Redis: what goes over NATS is not sent twice, and no worker hears all heartbeats.
STOCK = ("without_heartbeat", "without_gossip")
#: Of so many heartbeats one carries all that the server may have forgotten, however long: the tasks known here.
ALL_EVERY = 12


class EventsStep(bootsteps.Step):
    """The boot step that sends events from when the worker consumes until its last task ends, if there is a NATS.

    Without one, Celery's own events stay.
    """

    requires = ("howl.worker.results.outbox:Outbox",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.identity = Identity(parent)
        self.settings = self.identity.settings
        self.announcer: EventPublisher | None = None
        self._beats = 0
        if self.settings.nats_url:
            self.buffer = EventBuffer()
            self._take_over(parent)
            worker_ready.connect(self._begin)
            worker_shutdown.connect(self._end)
        else:
            logger.warning("No NATS is configured: this worker will not show in the workers table.")

    def beat(self) -> None:
        """Send a heartbeat before it is due."""
        if self.announcer is not None:
            self.announcer.beat()

    def _take_over(self, parent: Any) -> None:
        # Celery keeps weak references to receivers and steps alike; the worker holds this one.
        parent.howl_beacon = self
        self.dispatcher = EventDispatcher(
            parent.app,
            parent.hostname,
            tasks=parent.task_events or self.settings.task_events,
            show=self.buffer.add,
            beat=self.beat,
        )
        parent.howl_outbox.collector.show = self.buffer.add
        # So Celery's own step, and its connection to Redis, are left out.
        parent.task_events = False
        parent.options |= dict.fromkeys(STOCK, True)

    def _begin(self, **_: Any) -> None:
        if self.announcer is None:  # a consumer that reconnects is ready again
            courier = EventDelivery(self.buffer, self.settings, self.identity.boot_id)
            self.announcer = EventPublisher(self.settings, self.identity.node_name, courier, self._event)
            self.announcer.start()

    def _end(self, **_: Any) -> None:
        if self.announcer is not None:
            self.announcer.stop()

    def _event(self, kind: str) -> bytes:
        """Make Celery's own event, with what HOWL adds under one name; a heartbeat alone can register a worker."""
        described = self.identity.describe()
        if kind == "worker-online" or self._beats % ALL_EVERY == 0:
            described["tasks"] = self.identity.tasks()
        self._beats += 1
        return encode(self.dispatcher.event(kind, {
            "freq": self.settings.heartbeat_interval,
            "sw_ident": "howl",
            "sw_ver": howl.__version__,
            "sw_sys": os.uname().sysname,
            "active": len(state.active_requests),
            "processed": state.all_total_count[0],
            "loadavg": load_average(),
            "worker": described | ({"status": "offline"} if kind == "worker-offline" else {}),
        }))  # fmt: skip
