"""Purging a queue: its messages are gone for good, and their tasks are recorded as cancelled."""

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

#: Messages of a list's first batch, most of any, and bytes that one shall have, about; and parked messages of a batch.
FIRST, MOST, MOST_BYTES = 8, 500, 8 << 20
PARKED = 50
#: Messages from a list's end among which one is looked for that workers or put-backs may have moved since it was read.
NEAR = 5000
#: More retries than that are nobody's count.
MOST_RETRIES = 1 << 30

#: Messages with what stands for them where they are: themselves, or list and message.
Batch = list[tuple[bytes, bytes]]


def purge(client: Any, prefix: str, lists: list[str]) -> int:
    """Empty a queue, given as its lists by priority, of what it held at the call; answers how many messages it was.

    What waits for its time in `parked` goes too, whichever user's workers parked it: a stock client's purge takes such
    tasks, and if they came back an hour later nobody would believe in the purge. What workers hold is theirs. Raises
    redis's errors; then a part is purged, and recorded.
    """
    keys = [f"{prefix}{name}" for name in lists]
    login = client.connection_pool.connection_kwargs.get("username") or DEFAULT_USER
    gone = sum(_purge_parked(client, Namespace(prefix, user), keys) for user in dict.fromkeys((DEFAULT_USER, login)))
    for user in sorted({*users_of(client)} - {DEFAULT_USER, login}):
        gone += _purge_parked_of(client, Namespace(prefix, user), keys)
    return gone + sum(_remove(client, prefix, key, _waiting(client, key)) for key in keys)


def _purge_parked_of(client: Any, namespace: Namespace, keys: list[str]) -> int:
    """The same of workers that may write anything there: where they reach the queue, and hindering no other."""
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
    """What is parked of these lists."""
    wanted = {key.encode() for key in keys}
    every = client.zscan_iter(container, match=f"{literal(keys[0])}*", count=PARKED)
    split = ((claim, *claim.partition(b"\n")[::2]) for claim, _ in every)
    ours = ((claim, message) for claim, key, message in split if key in wanted)
    while batch := list(islice(ours, PARKED)):
        yield batch


def _waiting(client: Any, key: str) -> Iterator[Batch]:
    """A list's messages, the next ones first; each batch must be removed before the next is asked for."""
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
    """How the message's task ended; empty when no task can be made out."""
    try:
        headers = task_headers(parse(message, PARSED_BYTES))
        task_id, name, retries = headers["id"], headers.get("task"), headers.get("retries")
    except NO_TASK:
        return b""
    if not is_id(task_id):
        return b""
    end = failure(task_id, "REVOKED", TaskRevokedError("purged"))
    # Of the attempt that would have come: the record knows that the one before asked for it.
    attempt = retries + 1 if isinstance(retries, int) and 0 <= retries < MOST_RETRIES else 1
    return encode(replace(end, attempt=attempt, name=name if is_id(name) else None))
