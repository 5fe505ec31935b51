"""What Redis holds now: queues, claims and what is set aside. Read-only."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import redis

from howl.backend import redis_client
from howl.config import Settings
from howl.errors import QueueUnavailable

#: What kombu puts between a queue's name and its priority.
PRIORITY_MARK = "\x06\x16"
#: Names of HOWL's and kombu's own keys, which are no queues.
NO_QUEUES = ("claims:", "turns:", "doorbell:", "_kombu.", "unacked", "group:", "progress:")
ITS_OWN = ("leases", "outcomes", "inflight", "deaths", "parked", "revoked", "dead", "unreadable")


def survey(settings: Settings) -> dict[str, Any]:
    """Queues (`queue`, `waiting`, `claimed`, `owners`), owners, and totals of what is set aside.

    Raises QueueUnavailable.
    """
    client: Any = redis_client(settings, timeout=5)
    try:
        with client:
            return _survey(client, settings)
    except redis.RedisError as error:
        raise QueueUnavailable(f"Redis cannot be asked: {error}. Check HOWL_REDIS_URL.") from error


def _survey(client: Any, settings: Settings) -> dict[str, Any]:
    waiting = _waiting(client, settings)
    owners, claimed = _claims(client, settings)
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
        "parked": client.zcard(settings.key("parked")),
        "deaths": _numbers(client.hgetall(settings.key("deaths"))),
        "dead": sorted(task_id.decode(errors="replace") for task_id in client.hkeys(settings.key("dead"))),
        "unreadable": client.llen(settings.key("unreadable")),
        **_backlog(client, settings),
        "in_flight": client.hlen(settings.key("inflight")),
    }


def _backlog(client: Any, settings: Settings) -> dict[str, Any]:
    """Outcomes that are not recorded yet: how many, their bytes, and whether workers take no tasks because of them."""
    size = client.memory_usage(settings.key("outcomes"), samples=0) or 0
    waiting = client.xlen(settings.key("outcomes"))
    return {
        "outcomes_waiting": waiting,
        "outcomes_bytes": size if waiting else 0,
        "held_up": size >= settings.backlog_limit,
    }


def _waiting(client: Any, settings: Settings) -> Counter[str]:
    """Messages a queue, all priorities together."""
    numbers: Counter[str] = Counter()
    for key in client.scan_iter(f"{literal(settings.key_prefix)}*", count=1000, _type="list"):
        name = key.decode(errors="replace").removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0]
        if name not in ITS_OWN and not name.startswith(NO_QUEUES) and not name.endswith(".pidbox"):
            numbers[name] += client.llen(key)
    return numbers


def _claims(client: Any, settings: Settings) -> tuple[list[dict[str, Any]], Counter[tuple[str, str]]]:
    """Owners with what they hold, and how many messages of which queue each holds."""
    owners, claimed = [], Counter[tuple[str, str]]()
    for raw, deadline in client.zrange(settings.key("leases"), 0, -1, withscores=True):
        owner = raw.decode(errors="replace")
        held = client.hgetall(settings.key(f"claims:{owner}"))
        lists = [value.partition(b"\n")[0].decode() for tag, value in held.items() if not tag.startswith(b"began:")]
        for name in lists:
            claimed[name.removeprefix(settings.key_prefix).partition(PRIORITY_MARK)[0], owner] += 1
        begun = sum(tag.startswith(b"began:") for tag in held)
        lease = datetime.fromtimestamp(deadline / 1000, UTC)
        owners.append({"owner": owner, "claimed": len(lists), "begun": begun, "lease_until": lease})
    return owners, claimed


def _numbers(found: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(errors="replace"): int(number) for name, number in found.items()}


def literal(prefix: str) -> str:
    """A pattern of Redis's that this text alone begins with."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
