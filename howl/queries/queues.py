"""What Redis holds now: queues, claims and what is set aside. Read-only."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis

from howl.broker import faults, reading
from howl.broker.areas import Area, all_areas
from howl.broker.keys import literal
from howl.broker.reading import LATEST
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.redis import redis_client
from howl.errors import QueueUnavailable
from howl.queue_names import ITS_OWN, NO_QUEUES, PRIORITY_MARK

#: Most owners of one user's that are shown.
OWNERS = 1000


def survey(settings: Settings) -> dict[str, Any]:
    """Queues (`queue`, `waiting`, `claimed`, `owners`), owners, and totals of what is set aside.

    Raises QueueUnavailable.
    """
    with _redis(settings) as client:
        return _survey(client, settings)


def waiting(settings: Settings) -> Counter[str]:
    """Messages that wait, by queue; raises QueueUnavailable."""
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
    areas = all_areas(client, settings)
    owners, claimed = _claims(client, settings, areas)
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
        "parked": sum(_length(client.zcard, area.key("parked")) for area in areas),
        "unknown": sum(_length(client.zcard, area.key("unknown")) for area in areas),
        "deaths": _numbers(found for area in areas for found in _fields(client, settings, area, "deaths").items()),
        "dead": sorted(
            {name.decode(errors="replace") for area in areas for name in _fields(client, settings, area, "dead")}
        ),
        "unreadable": sum(_length(client.llen, area.key("unreadable")) for area in areas),
        **_backlog(client, areas, settings),
        "in_flight": client.hlen(settings.key("inflight")),
        "removed": reading.removed(client, settings),
        "set_aside": faults.told(client.hgetall(settings.key(faults.SET_ASIDE))),
    }


def _backlog(client: Any, areas: list[Area], settings: Settings) -> dict[str, Any]:
    """Outcomes that are not recorded yet: how many, their bytes, and whether workers take no tasks because of them."""
    streams = [area.key("outcomes") for area in areas]
    waiting = {stream: _length(client.xlen, stream) for stream in streams}
    sizes = {stream: client.memory_usage(stream, samples=0) or 0 for stream in streams}
    return {
        "outcomes_waiting": sum(waiting.values()),
        "outcomes_bytes": sum(size for stream, size in sizes.items() if waiting[stream]),
        "held_up": any(size >= settings.backlog_limit for size in sizes.values()),
    }


def _waiting(client: Any, settings: Settings) -> Counter[str]:
    """Messages a queue, all priorities together."""
    numbers: Counter[str] = Counter()
    for key in queue_lists(client, settings):
        numbers[queue_of(key, settings)] += client.llen(key)
    return numbers


def queue_lists(client: Any, settings: Settings) -> Iterator[bytes]:
    """The lists in which messages wait, one a queue and priority."""
    for key in client.scan_iter(f"{literal(settings.key_prefix)}*", count=1000, _type="list"):
        name = queue_of(key, settings)
        if name not in ITS_OWN and not name.startswith(NO_QUEUES) and not name.endswith(".pidbox"):
            yield key


def queue_of(key: bytes, settings: Settings) -> str:
    """The queue of a list, whatever its priority."""
    return key.decode(errors="replace").removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0]


def _claims(
    client: Any, settings: Settings, areas: list[Area]
) -> tuple[list[dict[str, Any]], Counter[tuple[str, str]]]:
    """Owners with what they hold, and how many messages of which queue each holds."""
    owners, claimed = [], Counter[tuple[str, str]]()
    for area, raw, deadline in _leases(client, settings, areas):
        owner = area.named(raw[: reading.SHOWN].decode(errors="replace"))
        held = _fields(client, settings, area, b"claims:" + raw)
        lists = [value.partition(b"\n")[0].decode(errors="replace") for tag, value in held.items() if _is_claim(tag)]
        for name in lists:
            claimed[name.removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0], owner] += 1
        lease = datetime.fromtimestamp(min(max(deadline / 1000, 0), LATEST), UTC)
        owners.append({"owner": owner, "claimed": len(lists), "begun": len(held) - len(lists), "lease_until": lease})
    return owners, claimed


def _leases(client: Any, settings: Settings, areas: list[Area]) -> Iterator[tuple[Area, bytes, float]]:
    for area in areas:
        limits = reading.NAMES._replace(members=OWNERS, removes=False)
        for owner, deadline in reading.scores(client, settings, area, "leases", limits).items():
            yield area, owner, deadline


def _fields(client: Any, settings: Settings, area: Area, name: str | bytes) -> dict[bytes, bytes]:
    return reading.fields(client, settings, area, name, reading.SIGHT)


def _length(count: Callable[[str], int], key: str) -> int:
    """0 for a key that its user has made something else."""
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
        numbers[name.decode(errors="replace")] += reading.number(number)
    return dict(numbers)
