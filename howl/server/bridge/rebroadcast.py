"""Pass workers' events on to Celery's event exchange, where `celery events` and Flower receive them.

It is a fanout exchange on Redis: kombu publishes to a channel and keeps nothing. Many events are one message, as from
Celery's own buffering dispatcher. All use its routing key, because receivers of others (gossip) expect one event.
"""

import base64
import json
import time
from typing import Any
from uuid import uuid4

from howl.config import Settings
from howl.server.bridge.events import Heard

ROUTING_KEY = "task.multi"
#: Maximum events of a message, and seconds to the next try after nobody listened.
AT_ONCE, SILENCE = 500, 1.0
#: Types that Celery lacks. As `task-…`, Celery would take them for states: a task that progresses would not be started.
OURS = {"task-progress": "howl-progress", "task-log": "howl-log"}


class Rebroadcast:
    """Publishes events to listeners; while there are none, it costs one message per second."""

    def __init__(self, redis: Any, settings: Settings) -> None:
        self.redis = redis
        database = redis.connection_pool.connection_kwargs.get("db") or 0
        #: Named as by kombu's Redis transport (kombu.transport.redis, `_get_publish_topic`).
        self.channel = settings.key(f"/{database}.celeryev/{ROUTING_KEY}")
        #: Seconds after which a heartbeat no longer shows that its worker is alive.
        self.stale_after = settings.lost_after
        self.silent_until = 0.0

    @property
    def is_due(self) -> bool:
        """Whether somebody listens, or it is time to try again."""
        return time.monotonic() >= self.silent_until

    def pass_on(self, heard: Heard) -> None:
        """Publish events in their order of arrival; raises redis's errors."""
        if not self.is_due:
            return
        events = self._events(heard)
        for first in range(0, len(events), AT_ONCE):
            if not self.redis.publish(self.channel, _message(events[first : first + AT_ONCE])):
                self.silent_until = time.monotonic() + SILENCE
                return

    def _events(self, heard: Heard) -> list[dict[str, Any]]:
        """Skip old heartbeats: a receiver dates them by its own clock, and they must not revive dead workers."""
        alive_since = time.time() - self.stale_after
        workers = [
            each.event for each in heard.sightings
            if each.at.timestamp() > alive_since or each.described.status == "offline"
        ]  # fmt: skip
        return workers + [_renamed(each.event) for each in heard.happenings]


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    ours = OURS.get(event["type"])
    return event if ours is None else event | {"type": ours}


def _message(events: list[dict[str, Any]]) -> bytes:
    """Build a message of kombu's virtual transports (kombu.transport.virtual.base, `prepare_message`)."""
    properties = {
        "delivery_mode": 1,
        "delivery_info": {"exchange": "celeryev", "routing_key": ROUTING_KEY},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    message = {
        "body": base64.b64encode(json.dumps(events).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": "howl"},
        "properties": properties,
    }
    return json.dumps(message).encode()
