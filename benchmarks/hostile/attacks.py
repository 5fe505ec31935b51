"""The attacks: each function is one pass, which its process repeats; its docstring, part of `--help`, describes it.

The attacks use what a worker's credential may really do. What the product refuses counts as refused, not as an error.
"""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.hostile.thief import Refused, Thief, outcome
from howl.bursts.admission import LeaveRequest
from howl.outcomes import ChordCreated, encode

LARGE = 30 << 20
#: Bytes of a command near the 64 MB that Redis accepts from one client at once.
NEARLY_ALL = 60 << 20

Attack = Callable[[Thief], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Add an attack to the table, under its name with hyphens."""
    ATTACKS[function.__name__.replace("_", "-")] = function
    return function


# --- scripts that read what a worker wrote --------------------------------------------------------------------------


@attack
def turn_given(thief: Thief) -> None:
    """A turn whose answer was lost, and which gave out 2,000,000,000 messages. Right: as many as are there."""
    owner = thief.owner()
    lost = {"number": 1, "given": 2_000_000_000, "stale": "", "full": 0}
    thief.redis.hset(thief.key(f"turns:{owner}"), mapping=lost)
    thief.turn(owner)


@attack
def turn_stale(thief: Thief) -> None:
    """The same with 60 MB of stale tags. Right: what is too long for a turn to have written is not read."""
    owner = thief.owner()
    lost = {"number": 1, "given": 0, "stale": b"x\n" * (NEARLY_ALL // 2), "full": 0}
    thief.redis.hset(thief.key(f"turns:{owner}"), mapping=lost)
    thief.turn(owner)


@attack
def turn_wanted(thief: Thief) -> None:
    """A full queue, and a turn that wants 2,000,000,000 messages. Right: no more than a worker ever asks for."""
    _push(thief, 100_000)
    thief.turn(thief.owner(), wanted=2_000_000_000, most_bytes=2_000_000_000)


@attack
def turn_negative(thief: Thief) -> None:
    """A word that has -3 values, after which the next word is the same one. Right: such a turn is refused."""
    thief.turn(thief.owner(), "began", "tag", "-3")


@attack
def turn_words(thief: Thief) -> None:
    """A turn of 50,000 words, each of which rings. Right: a turn has as many words as a worker says at most."""
    bell = thief.settings.key("doorbell:mine")
    thief.turn(thief.owner(), *[("ring", "", bell)] * 50_000)


@attack
def turn_hold(thief: Thief) -> None:
    """After a gap, 100,000 claims it does not speak of. Right: as many as a worker can hold, or refused."""
    owner = thief.owner()
    _claim(thief, owner, 100_000)
    thief.turn(owner, ("hold", ""), number=9)


# --- more than Redis lets the server read ---------------------------------------------------------------------------


@attack
def outcomes_large(thief: Thief) -> None:
    """Three outcomes of 30 MB. Right: set aside unread; the recorder goes on with the neighbours'."""
    for _ in range(3):
        thief.leave(b"x" * LARGE)


@attack
def members_large(thief: Thief) -> None:
    """30 MB members where the server looks: parked, leases, deaths, and a message. Right: set aside unread."""
    large = uuid.uuid4().hex.encode() + b"x" * LARGE
    thief.redis.zadd(thief.key("parked"), {thief.queue.encode() + b"\n" + large: 1})
    thief.redis.zadd(thief.key("leases"), {large: 1})
    thief.redis.hset(thief.key("deaths"), large, 1)
    thief.redis.lpush(thief.queue, large)


@attack
def claims_large(thief: Thief) -> None:
    """Three claims of 30 MB each, of an owner whose lease is over. Right: set aside unread."""
    owner = thief.owner()
    for number in range(1, 4):
        claim = thief.queue.encode() + b"\n" + b"x" * LARGE
        thief.redis.hset(thief.key(f"claims:{owner}"), f"{owner}:1:{number}", claim)
    thief.redis.zadd(thief.key("leases"), {owner: 1})


@attack
def owners_many(thief: Thief) -> None:
    """10,000 owners at a time whose leases are over, who hold nothing. Right: some a round, all in the end."""
    owners = {thief.owner(): 1 for _ in range(10_000)}
    thief.redis.zadd(thief.key("leases"), owners)


# --- memory by shape ------------------------------------------------------------------------------------------------


@attack
def outcomes_of_lists(thief: Thief) -> None:
    """Eight legal outcomes as long as they may be, of empty lists. Right: a budget of what they become when parsed."""
    room = 2 * thief.settings.outcome_limit - 512
    thief.leave(*(outcome(b"[" + b",".join([b"[]"] * (room // 3)) + b"]") for _ in range(8)))


@attack
def outcomes_of_objects(thief: Thief) -> None:
    """The same of objects, each with a name of its own within one object. Right: as above."""
    room = 2 * thief.settings.outcome_limit - 512
    members = b",".join(b'"%x":{}' % number for number in range(0x10000, 0x10000 + room // 11))
    thief.leave(*(outcome(b"{" + members + b"}") for _ in range(8)))


@attack
def outcomes_of_numbers(thief: Thief) -> None:
    """The same of numbers that need 28 bytes for two. Right: as above."""
    room = 2 * thief.settings.outcome_limit - 512
    thief.leave(*(outcome(b"[" + b",".join([b"1e9"] * (room // 4)) + b"]") for _ in range(8)))


# --- NATS's memory, by subjects -------------------------------------------------------------------------------------


@attack
def subjects_of_artifacts(thief: Thief) -> None:
    """Messages to subjects of artifacts, 3 kB long and each another. Right: a few subjects a credential."""
    _publish_to_fresh(thief, "artifacts")


@attack
def subjects_of_events(thief: Thief) -> None:
    """The same of events. Right: as above."""
    _publish_to_fresh(thief, "events")


# --- PostgreSQL's disk ----------------------------------------------------------------------------------------------


@attack
def disk_results(thief: Thief) -> None:
    """Outcomes of 1 MB that no compression makes smaller. Right: so many bytes a credential and hour."""
    thief.leave(*(outcome(b'"%b"' % secrets.token_hex(500_000).encode()) for _ in range(4)))


@attack
def disk_chords(thief: Thief) -> None:
    """Chords of as many parts as fit, of tasks that never were. Right: so many parts, and for so long."""
    parts = [f"{number:x}" for number in range(0x10000, 0x10000 + 230_000)]
    chords = [ChordCreated(group_id=uuid.uuid4().hex, parts=parts) for _ in range(4)]
    thief.leave(*map(encode, chords))


@attack
def disk_tiny(thief: Thief) -> None:
    """Ends of tasks that never were, as small and as many as can be. Right: so many a credential and hour."""
    thief.leave(*(outcome(b"1") for _ in range(5000)))


# --- other people's answers -----------------------------------------------------------------------------------------


@attack
def inbox_listening(thief: Thief) -> None:
    """Listen where anybody is answered. Right: nobody hears another credential's answers."""
    if not _overhear(thief, 1.0):
        raise Refused("no answer to anybody else is heard")


@attack
def inbox_refusals(thief: Thief) -> None:
    """Have JetStream's refusals sent where a neighbour is answered. Right: he does not take them for his own."""
    try:
        heard = _overhear(thief, 0.5)
    except Refused:
        heard = []
    heard = heard or [f"{thief.settings.subject_prefix}.inbox.victim.x"]

    async def provoke(client: Client) -> None:
        subject, headers = thief.subject("events"), {"Nats-Expected-Last-Sequence": "1"}
        for number in range(2000):
            await client.publish(subject, b"[]", heard[number % len(heard)], headers)

    thief.on_nats(provoke)


@attack
def events_flood(thief: Thief) -> None:
    """Events by the megabyte, all legal and all of tasks that never were. Right: NATS drops, the bridge keeps up."""
    event = {"type": "task-started", "hostname": "celery@thief", "timestamp": time.time(), "clock": 1, "pid": 1}
    events = json.dumps([event | {"uuid": uuid.uuid4().hex} for _ in range(2000)]).encode()

    async def flood(client: Client) -> None:
        for _ in range(100):
            await client.publish(thief.subject("events"), events)

    thief.on_nats(flood)


# --- asking ---------------------------------------------------------------------------------------------------------


@attack
def leave_flood(thief: Thief) -> None:
    """Questions for leave, each of another run. Right: so many of one credential, and all others are answered."""

    async def flood(client: Client) -> None:
        for number in range(2000):
            asked = LeaveRequest(repository="a/b", run_id=str(time.time_ns() + number), workers=1, runtime=60.0)
            await client.publish(thief.subject("leave"), asked.model_dump_json().encode(), thief.inbox)

    thief.on_nats(flood)


@attack
def reads_heavy(thief: Thief) -> None:
    """Transactions of the most expensive reads there are. Right: no answer keeps Redis from the others for long."""
    owner = "celery@thief.heavy"
    claims = thief.key(f"claims:{owner}")
    if len(thief.redis.hkeys(claims)) < 100_000:
        _claim(thief, owner, 100_000)
        _push(thief, 100_000)
    with thief.redis.pipeline(transaction=True) as together:
        for _ in range(10):
            together.hkeys(claims)
            together.memory_usage(claims, samples=0)
        for _ in range(100):
            together.lindex(thief.queue, 50_000)
        together.execute()


@attack
def answers_unread(thief: Thief) -> None:
    """Fifty connections that ask for much and read nothing. Right: cut, and never at the neighbours' cost."""
    claims = thief.key("claims:celery@thief.unread")
    if not thief.redis.hkeys(claims):
        _claim(thief, "celery@thief.unread", 50_000)
    opened: list[Any] = []
    try:
        for _ in range(50):
            if thief.is_over:
                break
            opened.append(thief.redis.connection_pool.make_connection())
            opened[-1].connect()
            opened[-1].send_packed_command(opened[-1].pack_command("HKEYS", claims) * 20)
    finally:
        for connection in opened:
            connection.disconnect()


# --- what each of them is held against ------------------------------------------------------------------------------


def ordinary(thief: Thief) -> None:
    """Nothing but turns as a busy worker says them, as fast as they go, on its own queue."""
    _push(thief, 200)
    heard, given, *_ = thief.turn(thief.life, wanted=200, number=next(thief.numbers))
    if heard != b"ok":  # Redis has forgotten this owner
        thief.begin_anew()
        return
    ends = [("settle", tag, "id", outcome(b"null")) for tag in given[::3]]
    thief.turn(thief.life, *ends, number=next(thief.numbers))


#: Name of the control, which is no attack: the same processor time and bandwidth, used legitimately.
CONTROL = "ordinary-turns"


def find(name: str) -> Attack:
    """Return an attack by its name in the table, or the control."""
    return ordinary if name == CONTROL else ATTACKS[name]


def _push(thief: Thief, count: int) -> None:
    for first in range(0, count, 10_000):
        messages = [b'{"headers": {"id": "%d"}}' % number for number in range(first, min(first + 10_000, count))]
        thief.redis.lpush(thief.queue, *messages)


def _claim(thief: Thief, owner: str, count: int) -> None:
    """Forge `count` claims of an owner."""
    for first in range(0, count, 10_000):
        numbers = range(first, min(first + 10_000, count))
        forged = {f"{owner}:1:{number}": f"{thief.queue}\nx" for number in numbers}
        thief.redis.hset(thief.key(f"claims:{owner}"), mapping=forged)


def _publish_to_fresh(thief: Thief, kind: str) -> None:
    fresh = thief.fresh_subjects(kind, 3000)

    async def publish(client: Client) -> None:
        for _ in range(5000):
            await client.publish(fresh(), b"x")

    thief.on_nats(publish)


def _overhear(thief: Thief, seconds: float) -> list[str]:
    """Return the subjects of answers to others; raises Refused if it may not even listen."""
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    async def listen(client: Client) -> None:
        for subject in thief.inboxes:
            await client.subscribe(subject, cb=hear)
        await client.flush(5)
        await asyncio.sleep(seconds)

    thief.on_nats(listen)
    return heard
