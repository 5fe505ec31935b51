"""What dead owners held goes back on its queues, in order; what waits for its time goes back when it is near."""

import hashlib
import json
import logging
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import redis

from howl.broker.scripts import FEED, KEEP
from howl.celery import worker_id_of
from howl.config import Settings
from howl.errors import TaskDied
from howl.outcomes import encode, failure

logger = logging.getLogger(__name__)

#: Deaths of a message's run, and times it was handed back unbegun, beyond which it is dead.
DEATHS, HAND_BACKS = 5, 50
#: Most messages put back, and parked ones fed, in one script.
AT_ONCE = 500
#: Seconds before its time at which a parked task goes back: a worker holds it for the rest.
AHEAD = 30


def grant_one_more_lease(client: Any, settings: Settings) -> None:
    """After Redis or this server was away nobody could renew: everyone gets the time to."""
    key = settings.key("leases")
    seconds, _ = client.time()
    for owner, _deadline in client.zrange(key, 0, -1, withscores=True):
        client.zadd(key, {owner: (seconds + settings.lease) * 1000}, xx=True, gt=True)


def living_workers(client: Any, settings: Settings) -> list[str]:
    """Ids of workers whose leases run; raises redis's errors."""
    seconds, _ = client.time()
    owners = client.zrange(settings.key("leases"), seconds * 1000, "+inf", byscore=True)
    return sorted({worker_id_of(owner.decode(errors="replace").rpartition(".")[0]) for owner in owners})


class SharedNames:
    """Notices workers of one name: their leases are all renewed, unlike that of a worker whom a namesake replaced."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[bytes, ...], dict[bytes, float]] = {}
        self._warned: set[bytes] = set()

    def look(self, client: Any, settings: Settings) -> None:
        """Warn once of each such name; raises redis's errors."""
        deadlines = dict(client.zrange(settings.key("leases"), 0, -1, withscores=True))
        seen, self._first_seen = self._first_seen, {}
        for name, owners in _by_name(deadlines).items():
            first = self._first_seen[owners] = seen.get(owners, deadlines)
            renewed = sum(deadlines[owner] > first[owner] for owner in owners)
            if renewed > 1 and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "%d workers with the same name %s are alive: each does its own tasks, but the record shows them as "
                    "one. Give each a name of its own.", renewed, name.decode(errors="replace"),
                )  # fmt: skip


def _by_name(owners: Iterable[bytes]) -> dict[bytes, tuple[bytes, ...]]:
    """Owners of one node name, where there are several."""
    ordered = sorted(owners)
    groups = {name: tuple(group) for name, group in groupby(ordered, key=lambda owner: owner.rpartition(b".")[0])}
    return {name: group for name, group in groups.items() if len(group) > 1}


def put_back_what_the_dead_held(client: Any, settings: Settings) -> None:
    """For every owner whose lease ran out; raises redis's errors."""
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000
    for owner in client.zrange(settings.key("leases"), "-inf", now, byscore=True):
        _put_back(client, settings, owner.decode(errors="surrogateescape"))


def feed_what_is_due(client: Any, settings: Settings) -> None:
    """Parked tasks whose time is near."""
    keys = [settings.key("parked"), settings.key("leases")]
    while FEED.run(client, keys, [AHEAD, AT_ONCE]) == AT_ONCE:
        pass


def _put_back(client: redis.Redis, settings: Settings, owner: str) -> None:
    held: dict[bytes, bytes] = client.hgetall(settings.key(f"claims:{owner}"))  # type: ignore[assignment]
    tags = sorted((tag for tag in held if not tag.startswith(b"began:")), key=_order, reverse=True)
    keys = [settings.key(name) for name in
            (f"claims:{owner}", "leases", "deaths", "outcomes", f"turns:{owner}", "dead")]  # fmt: skip
    moved = 0
    for first in range(0, max(len(tags), 1), AT_ONCE):
        words = [word for tag in tags[first : first + AT_ONCE] for word in _words(client, settings, tag, held)]
        answer = int(KEEP.run(client, keys, [owner, *words]))
        if answer < 0:
            return  # it spoke in the meantime
        moved += answer
    if moved:
        logger.warning("Owner %s is gone: %d of its messages are back on their queues.", owner, moved)


def _words(client: Any, settings: Settings, tag: bytes, held: dict[bytes, bytes]) -> list[Any]:
    begun = held.get(b"began:" + tag)
    task_id = begun or _task_id(held[tag])
    counter = task_id if begun else b"back:" + task_id
    limit = DEATHS if begun else HAND_BACKS
    if int(client.hget(settings.key("deaths"), counter) or 0) < limit:
        return ["back", tag, 1, counter]
    reason = f"Its worker died with it more than {DEATHS} times." if begun else "No worker could ever begin it."
    return ["dead", tag, 2, task_id, encode(failure(task_id.decode(errors="replace"), "DEAD", TaskDied(reason)))]


def _order(tag: bytes) -> tuple[int, int]:
    """`owner:number:position`, the last taken being the largest."""
    _, number, position = tag.rsplit(b":", 2)
    return int(number), int(position)


def _task_id(claim: bytes) -> bytes:
    """The task's id; for a message without one something of its own, or all such would count as one task."""
    message = claim.partition(b"\n")[2]
    try:
        return str(json.loads(message)["headers"]["id"]).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return b"unreadable:" + hashlib.sha1(message, usedforsecurity=False).hexdigest().encode()
