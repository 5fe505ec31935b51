"""HOWL's kombu transport: kombu's Redis transport with four changes.

Publishing rings a doorbell, and can push a task once only. Purging a queue records how its tasks ended. A worker whose
credential grants a few queues needs rights to no others: bindings that it may not write to Redis, it keeps in memory.
In a booted worker a channel's task queues are consumed through a session (howl.worker.consumer.session) instead of
BRPOP. Everything else is kombu's own: queues, message format, fanout, priorities, remote control, and consuming in
any process that is not a booted worker.
"""

import logging
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import redis
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from howl.broker.doorbell import doorbell
from howl.broker.namespaces import DEFAULT_USER, may_push
from howl.broker.purge import purge
from howl.broker.scripts import PUSH
from howl.errors import NotGranted
from howl.queue_names import fault_of, require_queue

logger = logging.getLogger(__name__)

#: Value of Celery's `broker_transport`.
NAME = "howl.broker.transport:Transport"
#: Milliseconds after which a doorbell that nobody answers expires.
RINGING = 60_000

# kombu shows addresses with Redis's scheme: Flower looks up queues by the scheme that it sees there.
Connection.resolve_aliases[NAME] = "redis"

_once: ContextVar[bool] = ContextVar("howl_publish_once", default=False)
#: Bindings by exchange that this process made and may not write to Redis: (routing key, pattern, queue). Kept per
#: process, because kombu declares a queue once, and not again on each channel or in a pool's child.
_unwritten: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)

_for: ContextVar[str | None] = ContextVar("howl_publish_for", default=None)


@contextmanager
def publishing_once() -> Iterator[None]:
    """Publish a task from this thread only if no task of that id is in flight, so that a repeat adds no duplicate.

    This is a context, not an option of the message: Celery copies a message's options to the task's retries and
    replacements, which must be pushed although their id is in flight.
    """
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


@contextmanager
def publishing_for(user: str | None) -> Iterator[None]:
    """Publish from this thread only to queues that this Redis user may push to; None allows every queue.

    The server uses it to publish what a worker wrote, so that the worker does not gain the server's rights. Publishing
    elsewhere raises NotGranted.
    """
    token = _for.set(user)
    try:
        yield
    finally:
        _for.reset(token)


def is_for_a_worker() -> bool:
    """Return whether this thread publishes what a worker wrote."""
    return _for.get() is not None


class Claims(Protocol):
    """The holder of a channel's messages: howl.worker.consumer.adapter in a booted worker."""

    def holds(self, tag: str) -> bool: ...
    def listen(self, priorities: list[list[str]]) -> None: ...
    def acknowledged(self, tag: str) -> None: ...
    def rejected(self, tag: str, *, requeue: bool) -> None: ...


class QoS(kombu_redis.QoS):
    """A QoS that leaves the acknowledging of claims to the session, and the rest to kombu."""

    def append(self, message: Any, delivery_tag: str) -> None:
        if not self._is_claim(delivery_tag):
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        if self._is_claim(delivery_tag):
            self.channel.claims.acknowledged(delivery_tag)
        else:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self._is_claim(delivery_tag):
            self.channel.claims.rejected(delivery_tag, requeue=requeue)
        else:
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    def can_consume(self) -> bool:
        """Allow consuming beside a session, which limits itself; other queues of this channel are never held up."""
        return self.channel.claims is not None or super().can_consume()  # type: ignore[no-untyped-call]

    def _is_claim(self, tag: str) -> bool:
        # This does not ask whether it is held: a stale claim must not fall through to kombu's own bookkeeping.
        return self.channel.claims is not None and isinstance(tag, str) and tag.startswith(self.channel.claims.mark)


class Client(kombu_redis.PrefixedStrictRedis):
    """A client whose pipelines do without MULTI: no worker's credential may use it, and nothing here needs it."""

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:  # noqa: ARG002
        return super().pipeline(transaction=False, shard_hint=shard_hint)  # type: ignore[no-untyped-call]


class Channel(kombu_redis.Channel):
    """A channel whose queues, message format and fanout are kombu's own."""

    QoS = QoS
    #: Set in a booted worker, before it consumes.
    claims: Any = None
    #: Monotonic time in seconds before which a lost connection for remote control is not made again.
    listen_again_at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._claimed_queues: list[str] = []
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume the queue through the session, if there is one, unless it is a fanout queue."""
        answer = super().basic_consume(queue, *args, **kwargs)  # type: ignore[no-untyped-call]
        if self.claims is not None and queue not in self.active_fanout_queues:
            while queue in self._active_queues:
                self._active_queues.remove(queue)
            self._update_queue_cycle()
            self._claimed_queues.append(queue)
            self._listen()
        if queue in self.active_fanout_queues:
            # Now, not when the worker's loop first runs: it reports ready before that, and may be sent commands.
            self.connection.cycle._register_LISTEN(self)  # noqa: SLF001
        return answer

    def basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        answer = super().basic_cancel(consumer_tag)  # type: ignore[no-untyped-call]
        if queue in self._claimed_queues:
            self._claimed_queues.remove(queue)
            self._listen()
        return answer

    def _listen(self) -> None:
        lists = [[self._q_for_pri(queue, step) for queue in self._claimed_queues] for step in self.priority_steps]
        self.claims.listen(lists)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return parameters that make connections leave the event loop before they are closed, not after.

        Once closed, a socket cannot be unregistered, but is not gone: a pool's child that was started since holds it
        too. The loop would find it readable at every poll, for good, and take a whole core.
        """
        given: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
        if not asynchronous:
            return given
        channel, kind = self, given["connection_class"]

        class Connection(kind):  # type: ignore[misc, valid-type]  # TCP or TLS
            def disconnect(self, *args: Any, **kwargs: Any) -> None:
                # Not in a child: the loop belongs to its parent, and they share what it listens to.
                if self._sock is not None and self.pid == os.getpid() and channel.connection is not None:
                    channel.connection.cycle.poller.unregister(self._sock)
                super().disconnect(*args, **kwargs)

        return given | {"connection_class": Connection}

    def _receive(self) -> Any:
        try:
            return super()._receive()  # type: ignore[no-untyped-call]
        except self.connection_errors as error:
            if not self.connection.patient:
                raise
            self.rest_from_listening(error)

    def rest_from_listening(self, error: Exception) -> None:
        """Stop listening, for Redis is away, and allow it again in 0.5 to 1.5 seconds."""
        logger.info("Remote control does not hear Redis (%s): listening again in a moment.", error)
        self.listen_again_at = time.monotonic() + random.uniform(0.5, 1.5)  # noqa: S311  # jitter, no secret
        self._in_listen = None  # type: ignore[assignment]  # as kombu itself does
        if self.subclient.connection is not None:
            self.subclient.connection.disconnect()

    # --- queues: none may be one of our own keys ----------------------------------------------------------------------

    def _new_queue(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._require_queue(queue)
        super()._new_queue(queue, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _require_queue(self, queue: str) -> None:
        """Raise InvalidRequest unless a queue may have this name; kombu's own for remote control and events may."""
        if fault_of(queue):
            require_queue(queue)

    # --- bindings: shared by all publishers, so no worker's credential may write them ---------------------------------

    def queue_bind(self, queue: str, exchange: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Bind the queue; check rights first, so that a refused message leaves nothing written or remembered."""
        try:
            self._check_rights(queue)
        except NotGranted:
            if exchange and not self.state.exchanges.get(exchange, {}).get("table"):
                self.state.exchanges.pop(exchange, None)  # declared a moment ago, for this queue
            raise
        super().queue_bind(queue, exchange, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, routing_key.replace("#", "*"))
            return  # nobody looks up a broadcast's listeners, and those of dead processes would stay for ever
        binding = (routing_key or "", pattern or "", queue or "")
        if self._has_credential and binding in self.get_table(exchange):
            return
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[no-untyped-call]
        except redis.exceptions.NoPermissionError:
            _unwritten[self._table(exchange)].add(binding)

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        written = super().get_table(exchange)  # type: ignore[no-untyped-call]
        return [*written, *_unwritten[self._table(exchange)].difference(written)]

    def _delete(self, queue: str, exchange: str, *args: Any, **kwargs: Any) -> None:
        if self.typeof(exchange).type == "fanout":
            self.auto_delete_queues.discard(queue)  # and there is no list
            return
        self._require_queue(queue)
        super()._delete(queue, exchange, *args, **kwargs)  # type: ignore[no-untyped-call]

    def maybe_refresh_binding_expiry(self) -> None:
        if not self._has_credential or not self.active_fanout_queues.issuperset(self._active_queues):
            super().maybe_refresh_binding_expiry()  # type: ignore[no-untyped-call]

    def _refresh_bindings(self, queues: list[str]) -> None:
        super()._refresh_bindings([name for name in queues if name not in self._fanout_queues])  # type: ignore[no-untyped-call]

    def _table(self, exchange: str) -> str:
        return f"{self.global_keyprefix}{exchange}"

    def _get_client(self) -> Any:
        if not self._has_credential:
            return super()._get_client()  # type: ignore[no-untyped-call]
        return partial(Client, global_keyprefix=self.global_keyprefix)

    @property
    def _has_credential(self) -> bool:
        """Return whether a user other than the default is named, whose rights may be narrow."""
        return (self.connection.client.userid or DEFAULT_USER) != DEFAULT_USER

    # --- publishing -------------------------------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._require_queue(queue)
        self._check_rights(queue)
        task_id = (message.get("headers") or {}).get("id")
        if task_id and _once.get():
            self._put_once(queue, message, task_id)
            return
        if task_id and kwargs.get("_publish_batch") is None and queue not in self._expires:
            self._put_and_ring(queue, message)
            return
        super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]
        if task_id and (batch := kwargs.get("_publish_batch")) is not None:
            batch.add("lpush", doorbell(queue), 1)
            batch.add("pexpire", doorbell(queue), RINGING)

    def _put_fanout(self, exchange: str, *args: Any, **kwargs: Any) -> None:
        if _for.get() is not None:
            raise NotGranted(f"A worker's credential broadcasts nothing, and this is for {exchange}.")
        super()._put_fanout(exchange, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _check_rights(self, queue: str) -> None:
        user = _for.get()
        if user is None:
            return
        with self.conn_or_acquire() as client:
            asking = redis.Redis(connection_pool=client.connection_pool)
            if not may_push(asking, user, f"{self.global_keyprefix}{queue}"):
                raise NotGranted(f"Redis user {user} does not reach queue {queue}: grant it, or use one it reaches.")

    def _put_and_ring(self, queue: str, message: dict[str, Any]) -> None:
        """Push the message, and a token that wakes one idle worker, in one round trip."""
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            pipe.lpush(key, dumps(message))
            pipe.lpush(doorbell(queue), 1)
            pipe.pexpire(doorbell(queue), RINGING)
            pipe.execute()

    def _put_once(self, queue: str, message: dict[str, Any], task_id: str) -> None:
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        keys = [f"{self.global_keyprefix}{name}" for name in ("inflight", key, doorbell(queue))]
        with self.conn_or_acquire() as client:
            # A client without kombu's key prefixing, which knows only a script's first key.
            PUSH.run(redis.Redis(connection_pool=client.connection_pool), keys, [task_id, dumps(message)])

    def _purge(self, queue: str) -> int:
        """Purge the queue and record its tasks as cancelled; otherwise `howl server` would push them again."""
        self._require_queue(queue)
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps]
        with self.conn_or_acquire() as client:
            return purge(redis.Redis(connection_pool=client.connection_pool), self.global_keyprefix, lists)


class Poller(kombu_redis.MultiChannelPoller):
    """A poller that listens for remote control again by itself after its connection was lost."""

    def on_poll_init(self, poller: Any) -> None:
        """Keep the poller and restore nothing: only a worker has an event loop, and none of its messages are hidden."""
        self.poller = poller

    def _register_LISTEN(self, channel: Channel) -> None:  # noqa: N802  # kombu's name
        if not channel.connection.patient:
            super()._register_LISTEN(channel)  # type: ignore[no-untyped-call]
        elif time.monotonic() >= channel.listen_again_at:
            try:
                super()._register_LISTEN(channel)  # type: ignore[no-untyped-call]
            except channel.connection_errors as error:
                channel.rest_from_listening(error)


class Transport(kombu_redis.Transport):
    """The transport that Celery's `broker_transport` names; the URL stays redis:// or rediss://."""

    Channel = Channel
    #: Set in a booted worker: connections other than the session's wait for Redis to come back. Otherwise Celery would
    #: drop what it has reserved and restart its consumer.
    patient = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.cycle: Any = Poller()
