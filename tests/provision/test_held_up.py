"""Nobody with a worker's credential holds Redis up: whatever it writes and says, its neighbour is answered.

Redis serves one at a time, and scripts are run to their end. The credential `thief` was granted the queue `mine`.
"""

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from howl.broker.namespaces import Namespace
from howl.broker.scripts import PROGRESS, PURGE, TURN, load_all
from howl.config import Settings, load_settings
from howl.provision.permissions import Grant
from howl.server.maintenance import lease_reaper as keeping
from howl.server.maintenance.script_watchdog import Watchdog
from howl.worker.consumer import session
from tests.helpers.secured import ADMIN, SERVER, Secured
from tests.helpers.support import eventually

PREFIX = "t:"
MINE = Namespace(PREFIX, "thief")
OWNER = "celery@thief.boot"
CLAIMS, TURNS = MINE.key(f"claims:{OWNER}"), MINE.key(f"turns:{OWNER}")
#: Seconds for which a neighbour may wait, on a machine that does much else. Unbounded, each attack takes many more.
LONGEST = 2.0


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory(prefix="howl-held-", dir="/tmp") as folder:
        made = Secured(Path(folder), PREFIX, "t", [Grant("thief", ("mine",)), Grant("victim", ("theirs",))])
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def admin(secured: Secured) -> Iterator[Any]:
    with secured.client(ADMIN) as client:
        client.flushall()
        client.config_set("appendonly", "no")  # a busy disk would keep everybody waiting as well
        load_all(client)
        yield client


@pytest.fixture
def thief(secured: Secured, admin: Any) -> Iterator[Any]:
    with secured.client("thief") as client:
        yield client


@pytest.fixture
def settings(secured: Secured) -> Settings:
    """What `howl server` is told."""
    return load_settings(redis_url=secured.redis_url(SERVER), ca_file=secured.ca, key_prefix=PREFIX, subject_prefix="t")


@contextmanager
def a_neighbour_is_served(secured: Secured) -> Iterator[None]:
    """Meanwhile it asks again and again, and no answer takes long."""
    answered, over = [time.monotonic()], threading.Event()

    def ask() -> None:
        with secured.client("victim") as client:
            while not over.is_set():
                client.llen("t:theirs")
                answered.append(time.monotonic())
                time.sleep(0.01)

    neighbour = threading.Thread(target=ask)
    neighbour.start()
    try:
        yield
    finally:
        over.set()
        neighbour.join(30)
        answered.append(time.monotonic())
    longest = max(later - sooner for sooner, later in pairwise(answered))
    assert longest < LONGEST, f"a neighbour waited for {longest:.1f} s"


def said(*words: Any, number: Any = 1, lease: Any = 30_000, wanted: Any = 0, size: Any = 1 << 20, lists: Any = 1,
         limit: Any = 1 << 30) -> list[Any]:  # fmt: skip
    """The arguments of a turn; a word is its kind, its tag, how many values it says that it has, and these."""
    numbers = [PREFIX, MINE.root, OWNER, number, lease, wanted, size, "0-0", lists, limit]
    return [*numbers, *(part for word in words for part in word)]


KEYS = [CLAIMS, TURNS, "t:mine"]


def again_and_again(thief: Any, arguments: list[Any], times: int = 100) -> None:
    """Many small requests in one packet, which Redis serves one after the other before it turns to somebody else."""
    with thief.pipeline(transaction=False) as pipe:
        for _ in range(times):
            pipe.evalsha(TURN.digest, len(KEYS), *KEYS, *arguments)
        pipe.execute(raise_on_error=False)


# --- what a turn reads that an earlier one left ----------------------------------------------------------------------


def last_turn(thief: Any, **fields: Any) -> None:
    thief.hset(TURNS, mapping={"number": 1, "given": 0, "stale": "", "full": 0, **fields})


# Each writes, and after the `yield` has the script read it.


def many_given(thief: Any) -> Iterator[None]:
    last_turn(thief, given=2_000_000_000)
    yield
    again_and_again(thief, said(), 1)


def much_that_is_stale(thief: Any) -> Iterator[None]:
    last_turn(thief, stale="x\n" * 15_000_000)
    yield
    again_and_again(thief, said(), 3)


def a_long_number(thief: Any) -> Iterator[None]:
    last_turn(thief, number="0" * 20_000_000)
    yield
    again_and_again(thief, said())


def a_long_count(thief: Any) -> Iterator[None]:
    last_turn(thief, given="0" * 20_000_000)
    yield
    again_and_again(thief, said())


def fields_that_nobody_speaks_of(thief: Any) -> Iterator[None]:
    for first in range(0, 200_000, 20_000):
        thief.hset(CLAIMS, mapping={f"began:{number}": "" for number in range(first, first + 20_000)})
    yield
    again_and_again(thief, said(("hold", "", 0), number=5))


def fields_with_long_names(thief: Any) -> Iterator[None]:
    thief.hset(CLAIMS, mapping={f"began:{number}:{'x' * 1_000_000}": "" for number in range(30)})
    yield
    again_and_again(thief, said(("hold", "", 0), number=5))


def a_large_claim_spoken_of_often(thief: Any) -> Iterator[None]:
    thief.hset(CLAIMS, "tag", "t:mine\n" + "x" * 20_000_000)
    yield
    for kind in ("note", "hold", "began"):
        thief.hdel(TURNS, "number")
        again_and_again(thief, said(*[(kind, "tag", 1, "")] * 1000), 1)


def a_large_count_of_bytes(thief: Any) -> Iterator[None]:
    thief.set(MINE.key("outcomes:bytes"), "1" * 20_000_000)
    thief.xadd(MINE.key("outcomes"), {"outcome": ""})
    yield
    with thief.pipeline(transaction=False) as pipe:
        for number in range(1, 101):
            pipe.evalsha(TURN.digest, len(KEYS), *KEYS, *said(number=number, wanted=1))
        pipe.execute()


def progress_of_the_same_large_key(thief: Any) -> Iterator[None]:
    key = MINE.key("outcomes:bytes")
    thief.set(key, "1" * 20_000_000)
    yield
    with pytest.raises(redis.ResponseError):
        PROGRESS.run(thief, [key] * 1000, [60, *['{"order": "0"}'] * 999])


ATTACKS = [many_given, much_that_is_stale, a_long_number, a_long_count, fields_that_nobody_speaks_of,
           fields_with_long_names, a_large_claim_spoken_of_often, a_large_count_of_bytes,
           progress_of_the_same_large_key]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_neighbour_is_served_whatever_a_worker_wrote(
    secured: Secured, thief: Any, attack: Callable[[Any], Iterator[None]]
) -> None:
    steps = attack(thief)
    next(steps)
    with a_neighbour_is_served(secured):
        next(steps, None)


# --- what a turn is told ---------------------------------------------------------------------------------------------

NONSENSE: list[dict[str, Any]] = [
    {"number": "nan"}, {"number": "inf"}, {"number": 1e308}, {"number": -1}, {"number": 1.5}, {"number": "one"},
    {"wanted": 2_000_000_000}, {"wanted": -1}, {"wanted": "nan"}, {"size": 1e18}, {"size": -1}, {"lists": 2e9},
    {"lists": -5}, {"lists": 0.5}, {"lists": "nan"}, {"lease": 1e300}, {"lease": -1}, {"lease": "nan"}, {"limit": "x"},
]  # fmt: skip


@pytest.mark.parametrize("told", NONSENSE, ids=str)
def test_a_number_that_makes_no_sense_is_refused_by_name(thief: Any, told: dict[str, Any]) -> None:
    name = {"size": "bytes"}.get(*told, *told)
    with pytest.raises(redis.ResponseError, match=rf"turn\.lua: {name} must be a whole number"):
        TURN.run(thief, KEYS, said(**told))


@pytest.mark.parametrize("count", [-3, -1, "nan", 0.5, 2, 1e300, "", "x"])
def test_a_word_that_miscounts_its_values_is_refused(secured: Secured, thief: Any, count: Any) -> None:
    with a_neighbour_is_served(secured), pytest.raises(redis.ResponseError, match="as many values as it says"):
        TURN.run(thief, KEYS, said(("note", "tag", count, "value")))


def test_a_turn_that_says_too_much_is_refused(secured: Secured, thief: Any) -> None:
    for words in ([("hold", "", 0)] * 70_000, [("loose", "", 1, "")] * 1001, [("loose", "", 6001, *[""] * 6001)]):
        with a_neighbour_is_served(secured), pytest.raises(redis.ResponseError, match="than any worker has to say"):
            TURN.run(thief, KEYS, said(*words))


def test_a_turn_of_a_worker_that_holds_very_much_keeps_nobody_waiting(secured: Secured, thief: Any) -> None:
    holds = [("hold", f"{number}", 0) for number in range(20_000)]
    words = [("lost", f"{number}", 6, number, 5, *["x"] * 4) for number in range(1000)]
    for first in range(0, 20_000, 5000):
        thief.hset(CLAIMS, mapping={f"{number}": "t:mine\n{}" for number in range(first, first + 5000)})
    with a_neighbour_is_served(secured):
        assert TURN.run(thief, KEYS, said(*holds, *words, number=3))[0] == b"ok"


@pytest.mark.parametrize("word", ["back", "requeue", "lost"])
def test_a_claim_that_names_no_list_is_refused(thief: Any, word: str) -> None:
    thief.hset(CLAIMS, "tag", "x" * 1000)
    with pytest.raises(redis.ResponseError, match="a claim names no list"):
        TURN.run(thief, KEYS, said((word, "tag", 3, "id", 5, "outcome")))


@pytest.mark.parametrize("kind", ["turns", "claims", "outcomes"])
def test_a_key_of_another_type_is_refused(thief: Any, kind: str) -> None:
    key = {"turns": TURNS, "claims": CLAIMS, "outcomes": MINE.key("outcomes")}[kind]
    thief.lpush(key, "x")
    thief.lpush("t:mine", "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        TURN.run(thief, KEYS, said(wanted=1))


def test_a_session_never_asks_for_more_than_the_script_gives() -> None:
    text = TURN.text
    most, most_bytes, values, said_ = map(int, re.findall(r"= (\d+), (\d+), (\d+), (\d+)\n", text)[0])
    assert (most, most_bytes) == (session.MOST, session.MOST_BYTES)
    assert values > session.MOST_VALUES + session.MOST
    # After a gap: `hold` for all that is held, and for what was said in the last seconds; in three values each.
    assert said_ > 3 * (session.MOST_HELD + 10_000) + 3 * most + values


# --- what the server's own scripts find ------------------------------------------------------------------------------


def test_claims_and_deaths_that_make_no_sense_keep_the_keeper_from_nothing(
    secured: Secured, thief: Any, admin: Any, settings: Settings
) -> None:
    thief.hset(CLAIMS, mapping={
        f"{OWNER}:1:1": "t:mine", f"{OWNER}:1:2": "t:mine\nmessage", f"began:{OWNER}:1:2": "id",
        f"{OWNER}:1:3": "x" * 1_000_000, "\n": "t:mine\nmore", f"{OWNER}:{'9' * 400}:1": "",
    })  # fmt: skip
    thief.hset(MINE.key("deaths"), "id", "many")
    thief.zadd(MINE.key("leases"), {OWNER: 1})
    with a_neighbour_is_served(secured), secured.client(SERVER) as server:
        keeping.put_back_what_the_dead_held(server, settings)
    assert sorted(admin.lrange("t:mine", 0, -1)) == [b"message ", b"more"]  # a run of the one had begun
    assert admin.hget(MINE.key("deaths"), "id") == b"1"
    assert not admin.exists(CLAIMS)
    assert max(map(len, admin.lrange("t:unreadable", 0, -1))) <= 65_536


def test_parked_messages_that_name_no_list_hold_up_no_other(
    thief: Any, admin: Any, settings: Settings, secured: Secured
) -> None:
    own = Namespace(PREFIX)
    for namespace in (MINE, own):
        admin.zadd(namespace.key("parked"), {f"no list {number}": 1 for number in range(2000)})
        admin.zadd(namespace.key("parked"), {"t:mine\nmessage": 2})
    with secured.client(SERVER) as server:
        for _ in range(5):
            keeping.feed_what_is_due(server, settings)
    assert admin.lrange("t:mine", 0, -1) == [b"message", b"message"]
    assert admin.llen("t:unreadable") == 1000


def test_a_purge_among_thousands_that_are_nearly_alike_keeps_nobody_waiting(secured: Secured, admin: Any) -> None:
    alike = "x" * 20_000
    for first in range(0, 5000, 500):
        admin.rpush("t:mine", *[f"{alike}{number:05}" for number in range(first, first + 500)])
    pairs = [part for number in range(300) for part in (f"{alike}{number + 10_000:05}", "")]
    with a_neighbour_is_served(secured):
        assert PURGE.run(admin, ["t:mine", "t:outcomes"], [5000, *pairs]) == 0


# --- what was overlooked ---------------------------------------------------------------------------------------------

ENDLESS = "while true do end"


@pytest.fixture
def busy(secured: Secured, admin: Any) -> Iterator[Callable[[], threading.Thread]]:
    """Have the thief run a script without an end."""
    admin.config_set("busy-reply-threshold", 100)
    digest = admin.script_load(ENDLESS)
    running: list[threading.Thread] = []

    def run() -> None:
        with secured.client("thief") as client, pytest.raises(redis.RedisError):
            client.evalsha(digest, 1, CLAIMS)

    def begin() -> threading.Thread:
        running.append(threading.Thread(target=run))
        running[-1].start()
        eventually(lambda: _is_busy(admin))
        return running[-1]

    yield begin
    for thread in running:
        thread.join(30)
    admin.config_set("busy-reply-threshold", 5000)


def _is_busy(client: Any) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_a_script_without_an_end_is_stopped_and_its_user_named(
    settings: Settings, busy: Callable[[], threading.Thread], admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = Watchdog(settings)
    busy()
    with caplog.at_level(logging.ERROR):
        watchdog.look()
    assert admin.ping()
    assert re.search("A script held up Redis and was stopped. Redis user thief ran it, from 127.0.0.1", caplog.text)
    caplog.clear()
    watchdog.look()
    assert caplog.text == ""


def test_a_server_that_may_not_ask_says_so_and_stops_the_script(
    settings: Settings, busy: Callable[[], threading.Thread], admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    admin.execute_command("ACL", "SETUSER", SERVER, "-slowlog|get")
    busy()
    with caplog.at_level(logging.ERROR):
        Watchdog(settings).look()
    admin.execute_command("ACL", "SETUSER", SERVER, "+slowlog|get")
    assert "once `howl init` has brought its users up to date" in caplog.text
    assert admin.ping()
