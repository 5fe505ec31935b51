"""One stolen credential writes what is too large or too much; its neighbours' outcomes are recorded all the same.

The servers are those of `howl init`. `thief` was granted the queue `mine`, `victim` the queue `theirs`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from howl.broker import bounded_reads
from howl.broker.namespaces import Namespace, namespace_of
from howl.config import Settings, load_settings
from howl.connections.postgres import session
from howl.connections.redis import redis_client
from howl.models import Task
from howl.outcomes import Outcome, encode
from howl.queries.queues import survey
from tests.helpers.person import Person
from tests.helpers.servers import Server, howl
from tests.helpers.support import Process, eventually

pytestmark = pytest.mark.servers

#: Seconds within which a neighbour's outcome is on record (beside other tests; alone, a quarter), and megabytes that
#: `howl server` may have (compose's limit).
SOON, MEMORY = 20.0, 256
HUGE = bytes(30_000_000)
AT = datetime.now(UTC).isoformat()


@pytest.fixture(scope="module")
def settings_of(server: Server) -> Callable[[str], Settings]:
    """What a worker with this credential knows."""
    for name, queue in (("thief", "mine"), ("victim", "theirs")):
        howl("init", "join", "--queues", queue, "--name", name, "--out", server.folder.out)
    return lambda name: load_settings(join=server.join(name))


@pytest.fixture
def thief(settings_of: Callable[[str], Settings], person: Person) -> Iterator[Any]:
    with client_of(settings_of("thief")) as (client, namespace):
        yield client, namespace
    forget(person)


@pytest.fixture
def victim(settings_of: Callable[[str], Settings], person: Person) -> Iterator[Any]:
    with client_of(settings_of("victim")) as made:
        yield made
    forget(person)


@contextmanager
def client_of(settings: Settings) -> Iterator[tuple[Any, Namespace]]:
    with redis_client(settings, timeout=60) as client:
        yield client, namespace_of(settings)


def forget(person: Person) -> None:
    """What one test leaves is no other's."""
    with redis_client(person.settings) as client:
        for key in client.scan_iter(f"{person.settings.key_prefix}*", count=10_000):
            client.unlink(key)


def outcome(task_id: str, **more: Any) -> dict[str, bytes]:
    return {"outcome": encode(Outcome(task_id=task_id, state="SUCCESS", at=AT, **more))}


def found(person: Person, task_id: str) -> Task | None:
    with session(person.settings.database()) as opened:
        return opened.get(Task, task_id)


def seconds_until_recorded(person: Person, neighbour: tuple[Any, Namespace], task_id: str) -> float:
    """Of an outcome that a neighbour's worker tells now."""
    client, namespace = neighbour
    began = time.monotonic()
    while True:
        with suppress(redis.exceptions.OutOfMemoryError):  # a worker says it again, too
            client.xadd(namespace.key("outcomes"), outcome(task_id))
            break
        time.sleep(0.05)
        assert time.monotonic() - began < 30
    eventually(lambda: found(person, task_id), timeout=30)
    return time.monotonic() - began


def peak(process: Process) -> float:
    """Megabytes that it ever had."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@contextmanager
def again_and_again(attack: Callable[[], Any]) -> Iterator[None]:
    """An attack in a loop, whatever Redis says to it."""
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            with suppress(redis.RedisError):
                attack()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


# --- the recorder ---------------------------------------------------------------------------------------------------


def test_outcomes_larger_than_an_answer_of_redis_may_be_stop_nobody_elses(
    person: Person, howl_server: Process, thief: Any, victim: Any
) -> None:
    client, namespace = thief
    for _ in range(3):
        client.xadd(namespace.key("outcomes"), {"outcome": HUGE})
    assert seconds_until_recorded(person, victim, "of-the-victim-1") < SOON
    assert seconds_until_recorded(person, thief, "of-the-thief-1") < SOON
    assert "recorder stopped" not in howl_server.output
    told = [line for line in howl_server.output.splitlines() if "thief" in line]
    assert told
    assert namespace.key("outcomes") in told[0]
    assert "30,000,007 bytes" in told[0]


SPOILT: dict[str, Callable[[Any, str], Any]] = {
    "a text": lambda client, key: client.set(key, "x"),
    "a list": lambda client, key: client.lpush(key, "x"),
    "fields without number": lambda client, key: client.xadd(key, {f"f{i}": "" for i in range(200_000)}),
    "another field": lambda client, key: client.xadd(key, {"f": "x"}),
    "no end of small ones": lambda client, key: _many(client, key, 20_000),
}


def _many(client: Any, key: str, number: int) -> None:
    with client.pipeline(transaction=False) as together:
        for _ in range(number):
            together.xadd(key, {"outcome": "{}"})
        together.execute()


def test_spoilt_streams_of_outcomes_stop_nobody_elses(
    person: Person, howl_server: Process, thief: Any, victim: Any
) -> None:
    client, namespace = thief
    for how, spoil in SPOILT.items():
        spoil(client, namespace.key("outcomes"))
        for number in range(2):
            assert seconds_until_recorded(person, victim, f"{how.replace(' ', '-')}-{number}") < SOON
    eventually(lambda: not client.xlen(namespace.key("outcomes")))
    assert "recorder stopped" not in howl_server.output


# --- memory by shape ------------------------------------------------------------------------------------------------

TWO_MIB = 2 << 20


def _filled(unit: str, size: int, opening: str = "[", closing: str = "]") -> str:
    return opening + ",".join([unit] * (size // (len(unit) + 1))) + closing


def _keys(size: int) -> str:
    return "{" + ",".join(f'"{number:05x}":[]' for number in range(size // 11)) + "}"


SHAPES: dict[str, Callable[[int], str]] = {
    "lists": lambda size: _filled("[]", size),
    "lists within lists": lambda size: _filled("[" * 150 + "]" * 150, size),
    "objects": lambda size: _filled('{"a":{}}', size),
    "keys": _keys,
    "numbers": lambda size: _filled("1.5", size),
    "NULs": lambda size: _filled('["\\u0000"]', size),
    "a text of NULs": lambda size: '"' + "\\u0000" * (size // 6) + '"',
    "an emoji": lambda size: '"' + "x" * size + '\\ud83d\\ude00"',
}


def document(task_id: str, result: str) -> dict[str, bytes]:
    """An outcome with this result, JSON."""
    return {"outcome": outcome(task_id)["outcome"][:-1] + f', "result": {result}}}'.encode()}


def test_whatever_shape_outcomes_have_the_server_keeps_within_its_memory(
    person: Person, howl_server: Process, thief: Any, victim: Any
) -> None:
    client, namespace = thief
    for shape, make in SHAPES.items():
        for number in range(8):
            client.xadd(
                namespace.key("outcomes"), document(f"{shape}-{number}".replace(" ", "-"), make(TWO_MIB - 1000))
            )
        assert seconds_until_recorded(person, victim, f"beside-{shape}") < SOON
    eventually(lambda: not client.xlen(namespace.key("outcomes")), timeout=120)
    assert howl_server.popen.poll() is None
    assert peak(howl_server) < MEMORY
    # What cannot be read ends its task all the same.
    eventually(lambda: found(person, "lists-7"))
    assert person.status("lists-7") == "failed"


def test_an_honest_outcome_is_recorded_whatever_its_shape(person: Person, howl_server: Process, victim: Any) -> None:
    client, namespace = victim
    for shape, make in SHAPES.items():
        entry = document(f"honest-{shape}", make((1 << 20) - 1000))
        assert len(entry["outcome"]) <= person.settings.outcome_limit
        client.xadd(namespace.key("outcomes"), entry)
    eventually(lambda: found(person, f"honest-{shape}"), timeout=120)
    assert {person.status(f"honest-{shape}") for shape in SHAPES} == {"succeeded"}
    assert json.dumps(person.result("honest-lists within lists"))
    assert peak(howl_server) < MEMORY


# --- what workers hold ----------------------------------------------------------------------------------------------

LEASE_OVER, OWNER = 1, "celery@dead.boot"
HELD = b'{"headers": {"id": "held-by-the-dead"}}'


def spoil_all(client: Any, namespace: Namespace) -> None:
    """Something too large in each place that the server looks into for workers; all within what a user may store."""
    message = HUGE[: bounded_reads.MESSAGE_BYTES + 1]
    names = [b"%d" % number + HUGE[:100_000] for number in range(3)]
    client.hset(namespace.key(f"claims:{OWNER}"), "a:1:1", b"howl:mine\n" + message)
    client.hset(namespace.key(f"claims:{OWNER}"), "a:1:4", b"howl:mine\n" + HELD)
    client.hset(namespace.key(f"claims:{OWNER}"), message, b"howl:mine\n" + HELD)
    client.zadd(namespace.key("parked"), {b"howl:mine\n" + message: LEASE_OVER})
    client.hset(namespace.key("deaths"), mapping=dict.fromkeys(names, 1))
    client.hset(namespace.key("dead"), names[0], "x")
    client.hset(namespace.key("deaths"), "back:held-by-the-dead", "many")
    # Last: the server ends a lease that holds nothing, and what is held without one is nobody's.
    owners = dict.fromkeys((*names, OWNER.encode(), b"\xff\xfe"), LEASE_OVER)
    client.zadd(namespace.key("leases"), {**owners, b"other": "-inf"})


def test_what_is_too_large_among_what_workers_hold_keeps_nobody_from_getting_the_rest_back(
    person: Person, howl_server: Process, thief: Any, victim: Any
) -> None:
    client, namespace = thief
    spoil_all(client, namespace)
    (client_of_victim, its_area), server = victim, person.app.backend.redis
    client_of_victim.hset(its_area.key(f"claims:{OWNER}"), "a:1:1", b"howl:theirs\n" + HELD)
    client_of_victim.zadd(its_area.key("leases"), {OWNER: LEASE_OVER})
    found = survey(person.settings)
    assert found["owners"]
    eventually(lambda: server.lrange("howl:theirs", 0, -1) == [HELD])
    eventually(lambda: server.lrange("howl:mine", 0, -1) == [HELD])
    eventually(lambda: not server.zcard(namespace.key("leases")))
    eventually(lambda: not server.exists(namespace.key("parked")))
    assert howl_server.popen.poll() is None
    assert "keeper stopped" not in howl_server.output
    assert max(map(len, howl_server.output.splitlines())) < 1000
    assert survey(person.settings)["removed"]["thief"]["number"] >= 8
    assert seconds_until_recorded(person, victim, "beside-what-is-held") < SOON


@pytest.mark.parametrize("key", ["leases", "parked", "unknown", "deaths", "outcomes", "unreadable"])
def test_a_key_that_is_something_else_stops_nobody(
    person: Person, howl_server: Process, thief: Any, victim: Any, key: str
) -> None:
    client, namespace = thief
    (
        client.zadd(namespace.key(key), {"x": 1})
        if key in ("outcomes", "deaths")
        else client.lpush(namespace.key(key), "x")
    )
    assert survey(person.settings)
    (client_of_victim, its_area), server = victim, person.app.backend.redis
    client_of_victim.hset(its_area.key(f"claims:{OWNER}"), "a:1:1", b"howl:theirs\n" + HELD)
    client_of_victim.zadd(its_area.key("leases"), {OWNER: LEASE_OVER})
    eventually(lambda: server.lrange("howl:theirs", 0, -1) == [HELD])
    assert "keeper stopped" not in howl_server.output


# --- how much -------------------------------------------------------------------------------------------------------

PILES: dict[str, Callable[[Any, Namespace], Any]] = {
    "large outcomes": lambda client, namespace: client.xadd(namespace.key("outcomes"), {"outcome": HUGE}),
    "small outcomes": lambda client, namespace: _many(client, namespace.key("outcomes"), 5000),
    "parked messages": lambda client, namespace: client.zadd(namespace.key("parked"), {_unlike(HUGE): 1e15}),
    "leases": lambda client, namespace: client.zadd(
        namespace.key("leases"), {_unlike(b"x" * 100): 1e15 for _ in range(5000)}
    ),
    "claims of many": lambda client, namespace: _hashes(client, namespace, 5000, b"x"),
    "large claims": lambda client, namespace: _hashes(client, namespace, 1, HUGE),
}
_numbers = iter(range(1 << 60))


def _unlike(text: bytes) -> bytes:
    """Each time another."""
    return b"howl:mine\n%d" % next(_numbers) + text


def _hashes(client: Any, namespace: Namespace, number: int, value: bytes) -> None:
    with client.pipeline(transaction=False) as together:
        for _ in range(number):
            together.hset(namespace.key(f"claims:{next(_numbers)}"), "tag", value)
        together.execute()


def test_however_much_one_user_piles_up_redis_has_room_for_the_others(
    person: Person, howl_server: Process, thief: Any, victim: Any
) -> None:
    client, namespace = thief
    server = person.app.backend.redis
    for name, pile in PILES.items():
        with again_and_again(partial(pile, client, namespace)):
            for number in range(3):
                time.sleep(2)
                assert seconds_until_recorded(person, victim, f"{name}-{number}") < SOON
        # Its keys of each kind have their limits, and so has what was set aside of everybody.
        eventually(lambda: (memory := server.info("memory"))["used_memory"] < 0.85 * memory["maxmemory"])
    assert howl_server.popen.poll() is None
    # What the server takes away as it comes need not pass the limit; what died stays, and does.
    for number in range(12):
        with suppress(redis.exceptions.OutOfMemoryError):
            client.hset(namespace.key("dead"), str(number), bytes(28 << 20))
    eventually(lambda: "Redis user thief has" in howl_server.output)
    assert survey(person.settings)["removed"]["thief"]["bytes"] > 0
    assert peak(howl_server) < MEMORY
