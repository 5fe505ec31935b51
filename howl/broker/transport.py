"""HOWL's kombu transport: kombu's Redis transport, whose publishing can be told to push a task once."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import redis
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

PUSH = Path(__file__).with_name("push.lua").read_text()
PUSH_SHA = hashlib.sha1(PUSH.encode(), usedforsecurity=False).hexdigest()

#: What Celery's `broker_transport` says.
NAME = "howl.broker.transport:Transport"

# Where kombu shows an address, it is Redis's: Flower looks up queues by the scheme it sees there.
Connection.resolve_aliases[NAME] = "redis"

_once: ContextVar[bool] = ContextVar("howl_publish_once", default=False)


@contextmanager
def publishing_once() -> Iterator[None]:
    """Within it, this thread publishes a task only if no task of that id is in flight: repeating cannot duplicate.

    A context, not an option of the message: Celery copies a message's options to the task's retries and
    replacements, which must be pushed although their id is in flight.
    """
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


class Channel(kombu_redis.Channel):
    """Queues, message format, fanout and consuming are kombu's own."""

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        task_id = message.get("headers", {}).get("id")
        if not (_once.get() and task_id):
            super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client:
            # A client without kombu's key prefixing, which knows only a script's first key.
            bare = redis.Redis(connection_pool=client.connection_pool)
            keys = (f"{self.global_keyprefix}inflight", f"{self.global_keyprefix}{key}")
            evaluate(bare, PUSH, PUSH_SHA, keys, (task_id, dumps(message)))


class Transport(kombu_redis.Transport):
    """Named by Celery's `broker_transport`; the URL stays redis:// or rediss://."""

    Channel = Channel


def evaluate(client: Any, script: str, sha: str, keys: tuple[str, ...], arguments: tuple[Any, ...]) -> Any:
    """Run a script by its digest; by its text if Redis has not seen it, or has forgotten it."""
    try:
        return client.evalsha(sha, len(keys), *keys, *arguments)
    except redis.exceptions.NoScriptError:
        return client.eval(script, len(keys), *keys, *arguments)
