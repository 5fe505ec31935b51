"""The contents of Redis now: queues, claims and what is set aside. Read-only."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis

from howl.broker import bounded_reads, set_aside
from howl.broker.bounded_reads import LATEST
from howl.broker.keys import literal
from howl.broker.namespaces import Namespace, all_namespaces
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.redis import redis_client
from howl.errors import QueueUnavailable
from howl.queue_names import ITS_OWN, NO_QUEUES, PRIORITY_MARK

#: Most owners that are read per namespace.
OWNERS = 1000


def survey(settings: Settings) -> dict[str, Any]:
    """Return queues (`queue`, `waiting`, `claimed`, `owners`), owners, and totals of what is set aside.

    Raises QueueUnavailable.
    """
    with _redis(settings) as client:
        return _survey(client, settings)


def waiting(settings: Settings) -> Counter[str]:
    """Count waiting messages by queue; raises QueueUnavailable."""
    with _redis(settings) as client:
        return _waiting(client, settings)


@contextmanager
def _redis(settings: Settings) -> Iterator[Any]:
    client: Any = redis_client(settings, timeout=5)
    try:
        with client:
            yield client
    except redis.RedisError as error:
        raise QueueUnavailable(f"Redis cannot be asked: {reason(error)}. Check HOWL_REDIS_URL.") from error


def _survey(client: Any, settings: Settings) -> dict[str, Any]:
    waiting = _waiting(client, settings)
    namespaces = all_namespaces(client, settings)
    owners, claimed = _claims(client, settings, namespaces)
    names = sorted({*waiting, *(queue for queue, _ in claimed)})
    return {
        "queues": [
            {
                "queue": name,
                "waiting": waiting.get(name, 0),
                "claimed": sum(number for (queue, _), number in claimed.items() if queue == name),
                "owners": sorted(owner for queue, owner in claimed if queue == name),
            }
            for name in names
        ],
        "owners": owners,
        "parked": sum(_length(client.zcard, namespace.key("parked")) for namespace in namespaces),
        "unknown": sum(_length(client.zcard, namespace.key("unknown")) for namespace in namespaces),
        "deaths": _numbers(
            found for namespace in namespaces for found in _fields(client, settings, namespace, "deaths").items()
        ),
        "dead": sorted(
            {
                name.decode(errors="replace")
                for namespace in namespaces
                for name in _fields(client, settings, namespace, "dead")
            }
        ),
        "unreadable": sum(_length(client.llen, namespace.key("unreadable")) for namespace in namespaces),
        **_backlog(client, namespaces, settings),
        "in_flight": client.hlen(settings.key("inflight")),
        "removed": bounded_reads.removed(client, settings),
        "set_aside": set_aside.told(client.hgetall(settings.key(set_aside.SET_ASIDE))),
    }


def _backlog(client: Any, namespaces: list[Namespace], settings: Settings) -> dict[str, Any]:
    """Measure outcomes not recorded yet: their number, their bytes, and whether they keep workers from taking tasks."""
    streams = [namespace.key("outcomes") for namespace in namespaces]
    waiting = {stream: _length(client.xlen, stream) for stream in streams}
    sizes = {stream: client.memory_usage(stream, samples=0) or 0 for stream in streams}
    return {
        "outcomes_waiting": sum(waiting.values()),
        "outcomes_bytes": sum(size for stream, size in sizes.items() if waiting[stream]),
        "held_up": any(size >= settings.backlog_limit for size in sizes.values()),
    }


def _waiting(client: Any, settings: Settings) -> Counter[str]:
    """Count messages by queue, all priorities together."""
    numbers: Counter[str] = Counter()
    for key in queue_lists(client, settings):
        numbers[queue_of(key, settings)] += client.llen(key)
    return numbers


def queue_lists(client: Any, settings: Settings) -> Iterator[bytes]:
    """Yield the lists in which messages wait, one per queue and priority."""
    for key in client.scan_iter(f"{literal(settings.key_prefix)}*", count=1000, _type="list"):
        name = queue_of(key, settings)
        if name not in ITS_OWN and not name.startswith(NO_QUEUES) and not name.endswith(".pidbox"):
            yield key


def queue_of(key: bytes, settings: Settings) -> str:
    """Return the queue of a list, whatever its priority."""
    return key.decode(errors="replace").removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0]


def _claims(
    client: Any, settings: Settings, namespaces: list[Namespace]
) -> tuple[list[dict[str, Any]], Counter[tuple[str, str]]]:
    """Return the owners with their totals, and the number of messages each holds by queue."""
    owners, claimed = [], Counter[tuple[str, str]]()
    for namespace, raw, deadline in _leases(client, settings, namespaces):
        owner = namespace.named(raw[: bounded_reads.SHOWN].decode(errors="replace"))
        held = _fields(client, settings, namespace, b"claims:" + raw)
        lists = [value.partition(b"\n")[0].decode(errors="replace") for tag, value in held.items() if _is_claim(tag)]
        for name in lists:
            claimed[name.removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0], owner] += 1
        lease = datetime.fromtimestamp(min(max(deadline / 1000, 0), LATEST), UTC)
        owners.append({"owner": owner, "claimed": len(lists), "begun": len(held) - len(lists), "lease_until": lease})
    return owners, claimed


def _leases(client: Any, settings: Settings, namespaces: list[Namespace]) -> Iterator[tuple[Namespace, bytes, float]]:
    for namespace in namespaces:
        limits = bounded_reads.NAMES._replace(members=OWNERS, removes=False)
        for owner, deadline in bounded_reads.scores(client, settings, namespace, "leases", limits).items():
            yield namespace, owner, deadline


def _fields(client: Any, settings: Settings, namespace: Namespace, name: str | bytes) -> dict[bytes, bytes]:
    return bounded_reads.fields(client, settings, namespace, name, bounded_reads.SIGHT)


def _length(count: Callable[[str], int], key: str) -> int:
    """Return the length of a key; 0 if its user has stored another type there."""
    try:
        return count(key)
    except redis.exceptions.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return 0


def _is_claim(tag: bytes) -> bool:
    return not tag.startswith(b"began:")


def _numbers(found: Iterable[tuple[bytes, bytes]]) -> dict[str, int]:
    numbers: Counter[str] = Counter()
    for name, number in found:
        numbers[name.decode(errors="replace")] += bounded_reads.number(number)
    return dict(numbers)
