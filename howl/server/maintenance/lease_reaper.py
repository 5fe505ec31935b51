"""Put claims of dead owners back on their queues, in order, and parked messages when they are nearly due.

Each user's workers write this data themselves and may write anything: messages that they could not push are set aside,
and an invalid namespace holds up no other.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable
from itertools import groupby
from typing import Any

import redis

from howl.bounded_json import parse
from howl.broker import bounded_reads
from howl.broker import set_aside as faults
from howl.broker.message import NO_TASK, PARSED_BYTES, task_headers
from howl.broker.namespaces import Namespace, all_namespaces, may_push
from howl.broker.scripts import RECLAIM, UNPARK
from howl.config import Settings
from howl.connections.explain import takes_nothing_new
from howl.errors import TaskDied, TaskSetAside
from howl.node_names import worker_id_of
from howl.outcomes import died, encode, failure, is_id, requeued
from howl.queue_names import fault_of, queue_of

logger = logging.getLogger(__name__)

#: Number of times a message's run may die or be broken off, and that it may be returned unstarted, before it is dead.
DEATHS, HAND_BACKS = 5, 50
#: Maximum claims, and parked messages, that one script call puts back.
AT_ONCE = 500
#: The end of a tag; a worker may write other tags.
ORDER = re.compile(rb":(\d{1,15}):(\d{1,15})$")
BEGAN = b"began:"
#: Maximum portions put back in one round, of a namespace's parked tasks and of an owner's claims.
FEEDINGS = 100
#: Maximum bytes of an owner's name that are shown.
NAMED = 255
#: Maximum messages kept of those set aside.
UNREADABLE_KEPT = 1000
#: Seconds before it is due at which a parked task is put back; a worker holds it for the rest.
AHEAD = 30
#: Key of granted deadlines by owner, and its field that names the Redis run in which they were granted.
GRANTED, LIFE = "_granted", b"redis"
#: Kinds under which what is set aside is reported.
PARKED, HELD, AREA = "parked tasks", "claims", "namespaces of Redis users"
#: Reasons not to put messages on a queue.
NOT_REACHED, NO_LIST = "it does not reach", "that is no list"


def grant_one_more_lease(client: Any, settings: Settings) -> None:
    """Extend every lease once after Redis was away, when nobody could renew; raises redis's errors.

    An owner that has not renewed since its last grant is dead, however often the server starts, unless Redis did.
    """
    seconds, _ = client.time()
    until = (seconds + settings.lease) * 1000
    key, life = settings.key(GRANTED), _life_of_redis(client)
    known = client.hgetall(key)
    known = known if known.get(LIFE) == life else {}
    granted: dict[bytes, float] = {}

    def grant(namespace: Namespace) -> None:
        for owner, deadline in bounded_reads.scores(client, settings, namespace, "leases").items():
            name = namespace.root.encode() + owner
            if _deadline(known.get(name)) == deadline:
                granted[name] = deadline
            else:
                client.zadd(namespace.key("leases"), {owner: until}, xx=True, gt=True)
                granted[name] = max(deadline, until)

    in_every_namespace(client, settings, grant)
    with client.pipeline(transaction=True) as together:
        together.delete(key)
        together.hset(key, mapping={LIFE: life, **{name: repr(deadline) for name, deadline in granted.items()}})
        together.execute()


def could_not_renew(error: BaseException) -> bool:
    """Return whether the error means that Redis was away, or accepted no writes, for workers as well."""
    while True:
        if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
            return True
        if takes_nothing_new(error):
            return True
        if (cause := error.__cause__ or error.__context__) is None:
            return False
        error = cause


def _life_of_redis(client: Any) -> bytes:
    """Return Redis's run id, which differs after each start."""
    return str(client.info("server").get("run_id", "")).encode()


def _deadline(text: bytes | None) -> float | None:
    return None if text is None else float(text)


def living_workers(client: Any, settings: Settings, among: Collection[str]) -> list[str]:
    """Return the ids of those workers whose leases are valid; raises redis's errors.

    A lease counts only if its user may receive that worker's tasks: any worker may write any lease.
    """
    seconds, _ = client.time()
    alive: set[str] = set()

    def look(namespace: Namespace) -> None:
        owners = bounded_reads.scores(client, settings, namespace, "leases", lowest=seconds * 1000)
        named = {worker_id_of(owner.decode(errors="replace").rpartition(".")[0]) for owner in owners}
        for worker_id in named.intersection(among) - alive:
            if _may(client, settings, namespace, settings.key(f"worker.{worker_id}").encode()):
                alive.add(worker_id)

    if among:
        in_every_namespace(client, settings, look)
    return sorted(alive)


class SharedNames:
    """Detects workers that share a name: all their leases are renewed, unlike that of a worker that was replaced."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[bytes, ...], dict[bytes, float]] = {}
        self._warned: set[bytes] = set()

    def look(self, client: Any, settings: Settings) -> None:
        """Warn once about each shared name; raises redis's errors."""
        deadlines: dict[bytes, float] = {}
        in_every_namespace(
            client, settings,
            lambda namespace: deadlines.update(bounded_reads.scores(client, settings, namespace, "leases")),
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
    """Group owners by node name; keep names that have several owners."""
    ordered = sorted(owners)
    groups = {name: tuple(group) for name, group in groupby(ordered, key=lambda owner: owner.rpartition(b".")[0])}
    return {name: group for name, group in groups.items() if len(group) > 1}


def put_back_what_the_dead_held(client: Any, settings: Settings) -> None:
    """Put back the claims of owners whose leases expired; raises redis's errors."""
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000

    def put_back(namespace: Namespace) -> None:
        for owner in bounded_reads.scores(client, settings, namespace, "leases", highest=now):
            try:
                _put_back(client, settings, namespace, owner)
            except redis.exceptions.ResponseError as error:
                if _tell_if_often(
                    client, settings, HELD, namespace.named(owner[:NAMED].decode(errors="replace")), error
                ):
                    client.zrem(namespace.key("leases"), owner)  # its claims stay for inspection

    in_every_namespace(client, settings, put_back)


def feed_what_is_due(client: Any, settings: Settings) -> None:
    """Put back parked tasks that are nearly due; raises redis's errors."""
    in_every_namespace(client, settings, lambda namespace: _feed(client, settings, namespace))


def in_every_namespace(client: Any, settings: Settings, duty: Callable[[Namespace], Any]) -> None:
    """Run the duty in each namespace; an error in one is reported, and stops no other. Raises redis's errors."""
    for namespace in all_namespaces(client, settings):
        try:
            duty(namespace)
        except redis.exceptions.ResponseError as error:
            _tell_if_often(client, settings, AREA, namespace.user, error)


def _tell_if_often(
    client: Any, settings: Settings, kind: str, name: str, error: redis.exceptions.ResponseError
) -> bool:
    """Count a failed try, so that an invalid one holds up no other; return whether it was the last, and report that.

    Raises the error if Redis itself is in trouble, or the server's rights do not suffice.
    """
    if takes_nothing_new(error) or isinstance(error, redis.exceptions.NoPermissionError):
        raise error
    if not faults.is_last_try(client, settings, kind, name):
        return False
    faults.note(client, settings, kind, name, error)
    logger.error("What the workers of Redis user %s left cannot be looked after: %s.", name, error)
    return True


def _feed(client: Any, settings: Settings, namespace: Namespace) -> None:
    keys = [namespace.key("parked")]
    for _ in range(FEEDINGS):
        most, lists = _lists_let_through(client, settings, namespace)
        if not most or not UNPARK.run(client, keys, [settings.key_prefix, AHEAD, most, *lists]):
            return


def _lists_let_through(client: Any, settings: Settings, namespace: Namespace) -> tuple[int, list[str | bytes]]:
    """Return for unpark.lua how many of those due first to put back, and on which lists; set the rest aside."""
    near = (client.time()[0] + AHEAD) * 1000
    limits = bounded_reads.MESSAGES._replace(members=AT_ONCE)
    due = bounded_reads.scores(client, settings, namespace, "parked", limits, highest=near)
    faults_of = {name: fault_of_list(client, settings, namespace, name) for name in {list_of(claim) for claim in due}}
    refused = [(claim, fault) for claim in due if (fault := faults_of[list_of(claim)])]
    for claim, fault in refused:
        set_aside(client, settings, namespace, "parked", claim, fault)
        if fault == NO_LIST:
            _tell_of_its_end(client, settings, namespace, PARKED, claim)
    return len(due) - len(refused), ["only", *(name for name, fault in faults_of.items() if not fault)]


def set_aside(client: Any, settings: Settings, namespace: Namespace, where: str, claim: bytes, fault: str) -> None:
    """Remove a message from the namespace's sorted set `where`, and keep it for inspection."""
    logger.error("Redis user %s had left a message in `%s` for a queue %s: set aside.", namespace.user, where, fault)
    unreadable = settings.key("unreadable")
    with client.pipeline(transaction=True) as together:
        together.lpush(unreadable, claim)
        together.ltrim(unreadable, 0, UNREADABLE_KEPT - 1)
        together.zrem(namespace.key(where), claim)
        together.execute()


def _tell_of_its_end(client: Any, settings: Settings, namespace: Namespace, kind: str, claim: bytes) -> None:
    """Report a task as failed whose message can go nowhere, to whoever waits for it."""
    list_name = list_of(claim).decode(errors="replace")
    error = TaskSetAside(f"Its queue cannot take it back: the key {list_name[:NAMED]!r} is no list of Redis's.")
    task_id = _task_id(claim).decode()
    faults.note(client, settings, kind, task_id, error.message)
    client.xadd(namespace.key("outcomes"), {"outcome": encode(failure(task_id, "FAILURE", error))})


def _put_back(client: Any, settings: Settings, namespace: Namespace, owner: bytes) -> None:
    """Put back an owner's claims in portions that fit into memory."""
    moved, refused = 0, False
    for _ in range(FEEDINGS):
        held = bounded_reads.fields(client, settings, namespace, b"claims:" + owner, bounded_reads.MESSAGES)
        tags = sorted((tag for tag in held if not tag.startswith(BEGAN)), key=_order, reverse=True)
        faults_of = {
            name: fault_of_list(client, settings, namespace, name) for name in {list_of(held[tag]) for tag in tags}
        }
        rights = {name: fault is None for name, fault in faults_of.items()}
        count = _put_portion_back(client, settings, namespace, owner, held, tags, rights)
        if count is None:
            return  # it has renewed its lease meanwhile
        for tag in tags:
            if faults_of[list_of(held[tag])] == NO_LIST:
                _tell_of_its_end(client, settings, namespace, HELD, held[tag])
        moved, refused = moved + count, refused or not all(rights.values())
        if not count:
            break
    name = namespace.named(owner[:NAMED].decode(errors="replace"))
    if moved:
        logger.warning("Owner %s is gone: %d of its messages are back on their queues.", name, moved)
    if refused:
        logger.error("Owner %s held messages of queues it does not reach, or that are none: set aside.", name)


def _put_portion_back(
    client: Any, settings: Settings, namespace: Namespace, owner: bytes, held: dict[bytes, bytes], tags: list[bytes],
    rights: dict[bytes, bool],
) -> int | None:  # fmt: skip
    """Return the number of messages moved; None if the owner's lease is valid again."""
    root = namespace.root.encode()
    keys = [root + name for name in
            (b"claims:" + owner, b"leases", b"deaths", b"outcomes", b"turns:" + owner, b"dead")]  # fmt: skip
    deaths = _deaths(client, settings, namespace) if tags else {}
    worker_id = worker_id_of(owner.decode(errors="replace").rpartition(".")[0])
    moved = 0
    for first in range(0, max(len(tags), 1), AT_ONCE):
        words: list[Any] = []
        for tag in tags[first : first + AT_ONCE]:
            allowed = rights[list_of(held[tag])]
            words += _words(deaths, tag, held, worker_id) if allowed else ["aside", tag, 1, settings.key("unreadable")]
        answer = int(RECLAIM.run(client, keys, [owner, settings.key_prefix, *words]))
        if answer < 0:
            return None
        moved += answer
    return moved


def _deaths(client: Any, settings: Settings, namespace: Namespace) -> dict[bytes, bytes]:
    """Return counters by what they count; delete those that are no numbers: the script could not add to them."""
    found = bounded_reads.fields(client, settings, namespace, "deaths")
    spoilt = {name for name, count in found.items() if count != b"%d" % bounded_reads.number(count)}
    if spoilt:
        client.hdel(namespace.key("deaths"), *spoilt)
    return {name: count for name, count in found.items() if name not in spoilt}


def fault_of_list(client: Any, settings: Settings, namespace: Namespace, name: bytes) -> str | None:
    """Return why messages of the namespace's user may not or cannot go on this list; None if they may."""
    if not _may(client, settings, namespace, name):
        return NOT_REACHED
    return None if client.type(name) in (b"list", b"none") else NO_LIST


def _may(client: Any, settings: Settings, namespace: Namespace, name: bytes) -> bool:
    """Return whether the namespace's user's messages may go on this list, which is none of HOWL's own keys."""
    prefix = settings.key_prefix.encode()
    if not name.startswith(prefix) or fault_of(queue_of(name.removeprefix(prefix).decode(errors="replace"))):
        return False
    return bounded_reads.is_trusted(namespace, settings) or may_push(client, namespace.user, name)


def list_of(claim: bytes) -> bytes:
    return claim.partition(b"\n")[0]


def _words(deaths: dict[bytes, bytes], tag: bytes, held: dict[bytes, bytes], worker_id: str) -> list[Any]:
    begun = held.get(BEGAN + tag, b"")
    if not is_id(begun.decode(errors="replace")):
        begun = b""
    task_id = begun or _task_id(held[tag])
    counter = task_id if begun else b"back:" + task_id
    limit = DEATHS if begun else HAND_BACKS
    if bounded_reads.number(deaths.get(counter)) < limit:
        told = [encode(requeued(begun.decode(), worker_id))] if begun else []
        return ["back", tag, 2 + len(told), list_of(held[tag]), counter, *told]
    named = task_id.decode(errors="replace")
    never = failure(named, "DEAD", TaskDied("No worker could ever begin it."))
    return ["dead", tag, 2, task_id, encode(died(named, DEATHS) if begun else never)]


def _order(tag: bytes) -> tuple[int, int]:
    """Return a sort key for `owner:number:position`; the last taken is the largest."""
    numbers = ORDER.search(tag)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _task_id(claim: bytes) -> bytes:
    """Return the task's id; without one, a hash of the message, or all such messages would count as one task."""
    message = claim.partition(b"\n")[2]
    try:
        task_id = str(task_headers(parse(message, PARSED_BYTES))["id"])
        if is_id(task_id):
            return task_id.encode()
    except NO_TASK:
        pass
    return b"unreadable:" + hashlib.sha1(message, usedforsecurity=False).hexdigest().encode()
