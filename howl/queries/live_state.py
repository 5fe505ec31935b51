"""Queue lengths and the progress of running tasks, polled over one Redis connection. Read-only."""

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import redis

from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.redis import redis_client
from howl.errors import QueueUnavailable
from howl.queries.queues import queue_lists, queue_of

#: Seconds between two scans for new lists; a scan reads the names of all keys.
LOOK = 5.0
#: Most lists whose lengths are read.
LISTS = 1000


class Gauge:
    """A reader of live state with one connection to Redis, opened at the first read."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client: Any = redis_client(settings, timeout=2)
        self._lists: list[bytes] = []
        self._next_look = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, task_ids: Sequence[str]) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the waiting messages by queue, and the live progress of those tasks that have any.

        Raises QueueUnavailable.
        """
        try:
            self._look_for_lists()
            lengths, documents = self._ask(task_ids)
        except redis.RedisError as error:
            raise QueueUnavailable(f"Redis cannot be asked: {reason(error)}.") from error
        waiting: Counter[str] = Counter()
        for key, length in zip(self._lists, lengths, strict=True):
            waiting[queue_of(key, self.settings)] += length
        known = {task_id: _progress(text) for task_id, text in zip(task_ids, documents, strict=True) if text}
        return dict(sorted(waiting.items())), {task_id: told for task_id, told in known.items() if told}

    def _look_for_lists(self) -> None:
        if time.monotonic() >= self._next_look:
            self._lists = sorted(queue_lists(self._client, self.settings))[:LISTS]
            self._next_look = time.monotonic() + LOOK * random.uniform(0.8, 1.2)  # noqa: S311  # jitter, no secret

    def _ask(self, task_ids: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        with self._client.pipeline(transaction=False) as pipe:
            for key in self._lists:
                pipe.llen(key)
            if task_ids:
                pipe.mget([self.settings.key(f"progress:{task_id}") for task_id in task_ids])
            answers = pipe.execute()
        return answers[: len(self._lists)], answers[-1] if task_ids else []


def _progress(document: bytes) -> dict[str, Any] | None:
    """Return `done`, `total` and `note` as the bridge wrote them; None unless the document is a JSON object."""
    try:
        told = json.loads(document)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
