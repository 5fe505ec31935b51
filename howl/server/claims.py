"""What dead owners held goes back on its queues, in order; what waits for its time goes back when it is near.

Each user's workers write this down themselves, and may write anything: what they could not push is set aside, and an
area that makes no sense holds up no other.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable
from itertools import groupby
from typing import Any

import redis

from howl.broker.areas import DEFAULT_USER, Area, all_areas, may_push, user_of
from howl.broker.message import NO_TASK, task_headers
from howl.broker.scripts import FEED, KEEP
from howl.celery import worker_id_of
from howl.config import Settings
from howl.errors import TaskDied
from howl.outcomes import encode, failure
from howl.queue_names import fault_of, queue_of
from howl.tls import takes_nothing_new

logger = logging.getLogger(__name__)

#: Deaths of a message's run, and times it was handed back unbegun, beyond which it is dead.
DEATHS, HAND_BACKS = 5, 50
#: Most messages put back, and parked ones fed, in one script.
AT_ONCE = 500
#: How a tag ends; a worker may write others.
ORDER = re.compile(rb":(\d{1,15}):(\d{1,15})$")
#: Most owners of one area that are looked at in one round, and most times parked tasks are fed.
OWNERS, FEEDINGS = 10_000, 100
#: Of what is set aside, messages kept.
UNREADABLE_KEPT = 1000
#: Seconds before its time at which a parked task goes back: a worker holds it for the rest.
AHEAD = 30


def grant_one_more_lease(client: Any, settings: Settings) -> None:
    """After Redis or this server was away nobody could renew: everyone gets the time to."""
    seconds, _ = client.time()

    def grant(area: Area) -> None:
        key = area.key("leases")
        for owner, _deadline in client.zrange(key, 0, OWNERS - 1, withscores=True):
            client.zadd(key, {owner: (seconds + settings.lease) * 1000}, xx=True, gt=True)

    _in_every_area(client, settings, grant)


def living_workers(client: Any, settings: Settings, among: Collection[str]) -> list[str]:
    """Ids of those of these workers whose leases run; raises redis's errors.

    A lease counts where its user may be assigned that worker's tasks: any worker may write down any.
    """
    seconds, _ = client.time()
    alive: set[str] = set()

    def look(area: Area) -> None:
        owners = client.zrange(area.key("leases"), seconds * 1000, "+inf", byscore=True, offset=0, num=OWNERS)
        named = {worker_id_of(owner.decode(errors="replace").rpartition(".")[0]) for owner in owners}
        for worker_id in named.intersection(among) - alive:
            if _may(client, settings, area, settings.key(f"worker.{worker_id}").encode()):
                alive.add(worker_id)

    if among:
        _in_every_area(client, settings, look)
    return sorted(alive)


class SharedNames:
    """Notices workers of one name: their leases are all renewed, unlike that of a worker whom a namesake replaced."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[bytes, ...], dict[bytes, float]] = {}
        self._warned: set[bytes] = set()

    def look(self, client: Any, settings: Settings) -> None:
        """Warn once of each such name; raises redis's errors."""
        deadlines: dict[bytes, float] = {}
        _in_every_area(
            client, settings,
            lambda area: deadlines.update(client.zrange(area.key("leases"), 0, OWNERS - 1, withscores=True)),
        )  # fmt: skip
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

    def put_back(area: Area) -> None:
        for owner in client.zrange(area.key("leases"), "-inf", now, byscore=True, offset=0, num=OWNERS):
            _put_back(client, settings, area, owner.decode(errors="surrogateescape"))

    _in_every_area(client, settings, put_back)


def feed_what_is_due(client: Any, settings: Settings) -> None:
    """Parked tasks whose time is near; raises redis's errors."""
    _in_every_area(client, settings, lambda area: _feed(client, settings, area))


def _in_every_area(client: Any, settings: Settings, duty: Callable[[Area], Any]) -> None:
    for area in all_areas(client, settings):
        try:
            duty(area)
        except redis.exceptions.ResponseError as error:
            ours = area.user == DEFAULT_USER or isinstance(error, redis.exceptions.NoPermissionError)
            # While Redis takes nothing, nobody can renew a lease: the keeper starts again, and grants one more.
            if ours or takes_nothing_new(error):
                raise
            logger.error("What the workers of Redis user %s left cannot be looked after: %s.", area.user, error)  # noqa: TRY400


def _feed(client: Any, settings: Settings, area: Area) -> None:
    keys = [area.key("parked")]
    for _ in range(FEEDINGS):
        lists = _lists_let_through(client, settings, area)
        if not FEED.run(client, keys, [settings.key_prefix, AHEAD, AT_ONCE, *lists]):
            return


def _lists_let_through(client: Any, settings: Settings, area: Area) -> list[str | bytes]:
    """For feed.lua: the lists of what is due that the area's user may push to; the rest is set aside."""
    near = (client.time()[0] + AHEAD) * 1000
    due = client.zrange(area.key("parked"), "-inf", near, byscore=True, offset=0, num=AT_ONCE)
    rights = {name: _may(client, settings, area, name) for name in {_list_of(claim) for claim in due}}
    for claim in due:
        if not rights[_list_of(claim)]:
            _set_aside(client, settings, area, claim)
    return ["only", *(name for name, right in rights.items() if right)]


def _set_aside(client: Any, settings: Settings, area: Area, claim: bytes) -> None:
    logger.error("Redis user %s had parked a message for a queue it does not reach: set aside.", area.user)
    unreadable = settings.key("unreadable")
    with client.pipeline(transaction=True) as together:
        together.lpush(unreadable, claim)
        together.ltrim(unreadable, 0, UNREADABLE_KEPT - 1)
        together.zrem(area.key("parked"), claim)
        together.execute()


def _put_back(client: redis.Redis, settings: Settings, area: Area, owner: str) -> None:
    held: dict[bytes, bytes] = client.hgetall(area.key(f"claims:{owner}"))  # type: ignore[assignment]
    tags = sorted((tag for tag in held if not tag.startswith(b"began:")), key=_order, reverse=True)
    keys = [area.key(name) for name in
            (f"claims:{owner}", "leases", "deaths", "outcomes", f"turns:{owner}", "dead")]  # fmt: skip
    rights = {name: _may(client, settings, area, name) for name in {_list_of(held[tag]) for tag in tags}}
    moved = 0
    for first in range(0, max(len(tags), 1), AT_ONCE):
        words: list[Any] = []
        for tag in tags[first : first + AT_ONCE]:
            allowed = rights[_list_of(held[tag])]
            words += _words(client, area, tag, held) if allowed else ["aside", tag, 1, settings.key("unreadable")]
        answer = int(KEEP.run(client, keys, [owner, settings.key_prefix, *words]))
        if answer < 0:
            return  # it spoke in the meantime
        moved += answer
    if moved:
        logger.warning("Owner %s is gone: %d of its messages are back on their queues.", area.named(owner), moved)
    if not all(rights.values()):
        logger.error("Owner %s held messages of queues it does not reach: set aside.", area.named(owner))


def _is_trusted(area: Area, settings: Settings) -> bool:
    """Whether its user may do what this server may: then Redis need not be asked, nor say who its users are."""
    return area.user in (DEFAULT_USER, user_of(settings))


def _may(client: Any, settings: Settings, area: Area, name: bytes) -> bool:
    """Whether what the area's user left may go on this list; none of our own keys is one."""
    prefix = settings.key_prefix.encode()
    if not name.startswith(prefix) or fault_of(queue_of(name.removeprefix(prefix).decode(errors="replace"))):
        return False
    return _is_trusted(area, settings) or may_push(client, area.user, name)


def _list_of(claim: bytes) -> bytes:
    return claim.partition(b"\n")[0]


def _words(client: Any, area: Area, tag: bytes, held: dict[bytes, bytes]) -> list[Any]:
    begun = held.get(b"began:" + tag)
    task_id = begun or _task_id(held[tag])
    counter = task_id if begun else b"back:" + task_id
    limit = DEATHS if begun else HAND_BACKS
    if _number(client.hget(area.key("deaths"), counter)) < limit:
        return ["back", tag, 2, _list_of(held[tag]), counter]
    reason = f"Its worker died with it more than {DEATHS} times." if begun else "No worker could ever begin it."
    return ["dead", tag, 2, task_id, encode(failure(task_id.decode(errors="replace"), "DEAD", TaskDied(reason)))]


def _number(written: bytes | None) -> int:
    """A worker may have written anything, and as much of it as it liked."""
    return int(written) if written and len(written) < 10 and written.isdigit() else 0


def _order(tag: bytes) -> tuple[int, int]:
    """`owner:number:position`, the last taken being the largest."""
    numbers = ORDER.search(tag)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _task_id(claim: bytes) -> bytes:
    """The task's id; for a message without one something of its own, or all such would count as one task."""
    message = claim.partition(b"\n")[2]
    try:
        return str(task_headers(json.loads(message))["id"]).encode()
    except NO_TASK:
        return b"unreadable:" + hashlib.sha1(message, usedforsecurity=False).hexdigest().encode()
