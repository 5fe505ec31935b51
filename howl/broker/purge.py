"""Purging a queue: its messages are removed for good, and their tasks are recorded as cancelled."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from celery.exceptions import TaskRevokedError
from redis.exceptions import RedisError

from howl.bounded_json import parse
from howl.broker.keys import literal
from howl.broker.message import NO_TASK, PARSED_BYTES, task_headers
from howl.broker.namespaces import DEFAULT_USER, Namespace, may_push, users_of
from howl.broker.scripts import PURGE
from howl.connections.explain import reason
from howl.outcomes import encode, failure, is_id

logger = logging.getLogger(__name__)

#: Messages of a list's first batch, most messages and about the most bytes of any batch; parked messages per batch.
FIRST, MOST, MOST_BYTES = 8, 500, 8 << 20
PARKED = 50
#: Messages from a list's end that are searched for one that workers or put-backs may have moved since it was read.
NEAR = 5000
#: Larger counts of retries are not taken for real.
MOST_RETRIES = 1 << 30

#: Messages, each after the form in which it is stored: itself, or list and message.
Batch = list[tuple[bytes, bytes]]


def purge(client: Any, prefix: str, lists: list[str]) -> int:
    """Remove the messages that a queue, given as its lists by priority, holds at the call; return how many.

    Its parked messages go too, whichever user's workers parked them: a stock client's purge takes such tasks, and a
    purge whose tasks came back an hour later would not be trusted. Messages that workers hold stay. Raises redis's
    errors; then a part is purged and recorded.
    """
    keys = [f"{prefix}{name}" for name in lists]
    login = client.connection_pool.connection_kwargs.get("username") or DEFAULT_USER
    gone = sum(_purge_parked(client, Namespace(prefix, user), keys) for user in dict.fromkeys((DEFAULT_USER, login)))
    for user in sorted({*users_of(client)} - {DEFAULT_USER, login}):
        gone += _purge_parked_of(client, Namespace(prefix, user), keys)
    return gone + sum(_remove(client, prefix, key, _waiting(client, key)) for key in keys)


def _purge_parked_of(client: Any, namespace: Namespace, keys: list[str]) -> int:
    """Purge what one user's workers parked, of the lists that the user may push to; an error is only logged."""
    try:
        reached = [key for key in keys if may_push(client, namespace.user, key)]
        return _purge_parked(client, namespace, reached) if reached else 0
    except RedisError as error:
        logger.error("What workers of Redis user %s parked cannot be purged: %s.", namespace.user, reason(error))  # noqa: TRY400
        return 0


def _purge_parked(client: Any, namespace: Namespace, keys: list[str]) -> int:
    containers = [namespace.key("parked"), namespace.key("unknown")]
    return sum(
        _remove(client, namespace.prefix, container, _parked(client, container, keys)) for container in containers
    )


def _parked(client: Any, container: str, keys: list[str]) -> Iterator[Batch]:
    """Yield batches of the parked messages of these lists."""
    wanted = {key.encode() for key in keys}
    every = client.zscan_iter(container, match=f"{literal(keys[0])}*", count=PARKED)
    split = ((claim, *claim.partition(b"\n")[::2]) for claim, _ in every)
    ours = ((claim, message) for claim, key, message in split if key in wanted)
    while batch := list(islice(ours, PARKED)):
        yield batch


def _waiting(client: Any, key: str) -> Iterator[Batch]:
    """Yield batches of a list's messages, the next ones first; remove each batch before asking for the next."""
    left, count = client.llen(key), FIRST
    while left > 0 and (messages := client.lrange(key, -min(count, left), -1)):
        yield [(message, message) for message in reversed(messages)]
        left -= len(messages)
        count = max(1, min(2 * count, MOST, MOST_BYTES // max(map(len, messages))))


def _remove(client: Any, prefix: str, container: str, batches: Iterator[Batch]) -> int:
    gone = 0
    for batch in batches:
        pairs = [part for stored, message in batch for part in (stored, _outcome(message))]
        gone += int(PURGE.run(client, [container, f"{prefix}outcomes"], [NEAR, *pairs]))
    return gone


def _outcome(message: bytes) -> bytes:
    """Return the outcome of the message's task; empty if the message is not a task's."""
    try:
        headers = task_headers(parse(message, PARSED_BYTES))
        task_id, name, retries = headers["id"], headers.get("task"), headers.get("retries")
    except NO_TASK:
        return b""
    if not is_id(task_id):
        return b""
    end = failure(task_id, "REVOKED", TaskRevokedError("purged"))
    # Of the next attempt: the record knows that the one before asked for it.
    attempt = retries + 1 if isinstance(retries, int) and 0 <= retries < MOST_RETRIES else 1
    return encode(replace(end, attempt=attempt, name=name if is_id(name) else None))
