"""What turn.lua, reclaim.lua and unpark.lua promise, each promise by itself, against a real server."""

import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import redis

from howl.broker.scripts import RECLAIM, TURN, UNPARK
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.server.maintenance import lease_reaper as keeping
from tests.helpers.support import eventually

LEASE = 30_000
OUTCOME = b'{"kind": "outcome"}'


@dataclass
class Answer:
    """What a turn was told."""

    tags: list[str]
    messages: list[bytes]
    lists: list[bytes]
    stale: list[str]
    revoked: list[bytes]
    last_revoked: bytes
    held_up: bool


@dataclass
class Owner:
    """One owner, as the session would speak for it, word by word."""

    settings: Settings
    client: Any
    name: str = "celery@w1.boot1"
    queues: tuple[str, ...] = ("q",)
    lease: int = LEASE
    backlog: int = 1 << 30
    number: int = field(default=0)

    def turn(self, *words: Any, wanted: int = 0, size: int = 1 << 20, known: bytes = b"0-0", number: int = -1) -> Any:
        """Say a turn, by default the next one; the script's own answer."""
        self.number = self.number + 1 if number < 0 else number
        key = self.settings.key
        own = [key(f"claims:{self.name}"), key(f"turns:{self.name}")]
        bells = [key(f"doorbell:{queue}") for queue in self.queues]
        said = [part for kind, tag, *values in words for part in (kind, tag, len(values), *values)]
        begin = [self.settings.key_prefix, self.settings.key_prefix]
        numbers = [*begin, self.name, self.number, self.lease, wanted, size, known, len(self.queues), self.backlog]
        return TURN.run(self.client, [*own, *map(key, self.queues), *bells], [*numbers, *said])

    def ask(self, *words: Any, **options: Any) -> Answer:
        """The same, for a turn that is heard."""
        status, given, stale, revoked, held_up, _ = self.turn(*words, **options)
        assert status == b"ok"
        return Answer(
            [tag.decode() for tag in given[::3]], given[2::3], given[1::3], [tag.decode() for tag in stale],
            [fields[1] for fields in revoked[1:]], revoked[0], bool(held_up),
        )  # fmt: skip

    def take(self, wanted: int = 1) -> list[str]:
        """Claim messages; their tags."""
        return self.ask(wanted=wanted).tags

    @property
    def claims(self) -> dict[bytes, bytes]:
        """What it holds."""
        return self.client.hgetall(self.settings.key(f"claims:{self.name}"))


@pytest.fixture
def client(settings: Settings) -> Any:
    with redis_client(settings) as made:
        yield made


@pytest.fixture
def owner(settings: Settings, client: Any) -> Owner:
    return Owner(settings, client)


@pytest.fixture
def other(settings: Settings, client: Any) -> Owner:
    return Owner(settings, client, name="celery@w1.boot2")


@pytest.fixture
def publish(settings: Settings, client: Any) -> Any:
    """Put messages on a queue as stock clients do; without an argument, one more of a series."""
    numbers = count(1)

    def _publish(*messages: bytes, queue: str = "q") -> list[bytes]:
        given = list(messages) or [b"message %d" % next(numbers)]
        for message in given:
            client.lpush(settings.key(queue), message)
        return given

    return _publish


def waiting(owner: Owner, queue: str = "q") -> list[bytes]:
    """A queue's messages, the next one first."""
    return owner.client.lrange(owner.settings.key(queue), 0, -1)[::-1]


def outcomes(owner: Owner) -> list[bytes]:
    return [fields[b"outcome"] for _, fields in owner.client.xrange(owner.settings.key("outcomes"))]


def everything(owner: Owner) -> dict[bytes, Any]:
    """All of the namespace but the leases, which every word renews, and a size that is forgotten in a second."""
    found = {}
    passing = {owner.settings.key(name).encode() for name in ("leases", "outcomes:bytes")}
    for key in owner.client.scan_iter(f"{owner.settings.key_prefix}*", count=1000):
        if key not in passing:
            found[key] = owner.client.dump(key)
    return found


# --- taking -------------------------------------------------------------------------------------------------------


def test_messages_are_given_in_the_order_they_were_pushed_and_held(owner: Owner, publish: Any) -> None:
    publish(b"first", b"second", b"third")
    answer = owner.ask(wanted=2)
    assert answer.messages == [b"first", b"second"]
    assert answer.tags == [f"{owner.name}:1:1", f"{owner.name}:1:2"]
    assert owner.claims == {
        tag.encode(): owner.settings.key("q").encode() + b"\n" + message
        for tag, message in zip(answer.tags, answer.messages, strict=True)
    }
    assert waiting(owner) == [b"third"]


def test_the_more_urgent_list_is_emptied_first(owner: Owner, publish: Any) -> None:
    owner.queues = ("urgent", "q")
    publish(b"late", queue="q")
    publish(b"soon", b"soon too", queue="urgent")
    assert owner.ask(wanted=3).messages == [b"soon", b"soon too", b"late"]


def test_a_message_beyond_the_byte_limit_waits_for_another_turn(owner: Owner, publish: Any) -> None:
    publish(b"a" * 60, b"b" * 60, b"c" * 60)
    assert len(owner.ask(wanted=3, size=100).messages) == 2


def test_one_message_larger_than_the_byte_limit_is_given_alone(owner: Owner, publish: Any) -> None:
    publish(b"a" * 1000, b"b")
    assert owner.ask(wanted=2, size=100).messages == [b"a" * 1000]


def test_nothing_is_given_out_while_the_recorder_has_too_much_to_do(owner: Owner, publish: Any) -> None:
    publish()
    owner.backlog = 1 << 20
    owner.ask(*[("loose", "", b"x" * 100_000)] * 11)
    assert owner.ask(wanted=1).held_up
    assert owner.ask(wanted=1, number=owner.number).held_up
    assert not owner.ask().held_up, "it asked for nothing"
    owner.client.xtrim(owner.settings.key("outcomes"), maxlen=1, approximate=False)
    answer = eventually(lambda: (told := owner.ask(wanted=1)) and not told.held_up and told)
    assert len(answer.tags) == 1


def test_outcomes_of_all_sizes_are_counted_wherever_they_are_in_the_stream(owner: Owner, publish: Any) -> None:
    publish()
    owner.backlog = 1 << 20
    owner.ask(*[("loose", "", OUTCOME)] * 1000)
    owner.ask(*[("loose", "", b"x" * 500_000)] * 3)
    assert owner.ask(wanted=1).held_up


def test_a_turn_renews_the_lease_by_the_servers_clock(owner: Owner) -> None:
    before, _, after = owner.client.time(), owner.ask(), owner.client.time()
    given = owner.client.zscore(owner.settings.key("leases"), owner.name) - LEASE
    assert before[0] * 1000 <= given <= (after[0] + 1) * 1000


def test_a_message_passes_through_untouched_whatever_its_bytes(owner: Owner, publish: Any) -> None:
    message = b'{"big": 9007199254740993, "none": [], "line": "\\n"}\n\x00\xff' + b"[" * 2000
    publish(message)
    [tag] = owner.take()
    owner.ask(("back", tag))
    assert waiting(owner) == [message]


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_repeated_turn_gets_the_same_answer_and_changes_nothing(owner: Owner, publish: Any) -> None:
    publish(), publish(), publish()
    settled, _ = owner.take(2)
    words = (("settle", settled, "id", OUTCOME), ("settle", "never:1:1", "id", OUTCOME), ("loose", "", OUTCOME))
    first = owner.ask(*words, wanted=5)
    before = everything(owner)
    again = owner.ask(*words, wanted=5, number=owner.number)
    assert again == first
    assert len(first.tags) == 1
    assert first.stale == ["never:1:1"]
    assert everything(owner) == before


def test_a_repeated_turn_gives_nothing_back_that_was_put_back_meanwhile(owner: Owner, publish: Any) -> None:
    publish()
    owner.take()
    owner.client.zadd(owner.settings.key("leases"), {owner.name: 1})
    keeping.put_back_what_the_dead_held(owner.client, owner.settings)
    assert owner.ask(wanted=1, number=owner.number).tags == []


def test_an_older_turn_is_refused_and_changes_nothing(owner: Owner, publish: Any) -> None:
    publish(), publish()
    [tag] = owner.take()
    owner.ask()
    before = everything(owner)
    assert owner.turn(("settle", tag, "id", OUTCOME), wanted=1, number=1) == [b"old", 2]
    assert everything(owner) == before


def test_a_turn_after_a_gap_is_refused_and_changes_nothing(owner: Owner, publish: Any) -> None:
    publish(), publish()
    [tag] = owner.take()
    before = everything(owner)
    assert owner.turn(("settle", tag, "id", OUTCOME), wanted=1, number=5) == [b"gap", 1]
    assert everything(owner) == before


def test_after_a_gap_what_is_held_stays_and_what_was_given_out_last_goes_back_in_order(
    owner: Owner, publish: Any
) -> None:
    publish(b"a", b"b", b"c", b"d", b"e")
    [first] = owner.take(1)
    second, _, _ = owner.take(3)
    owner.ask(("began", second, "id"), number=2)  # repeated: nothing is said
    owner.ask(("hold", ""), ("hold", first), ("hold", second), number=9)
    assert waiting(owner) == [b"c", b"d", b"e"]
    assert sorted(owner.claims) == [first.encode(), second.encode()]


def test_after_a_gap_of_more_than_is_remembered_everything_goes_back(owner: Owner, publish: Any) -> None:
    publish(b"a", b"b", b"c")
    first, _ = owner.take(2)
    owner.take(1)
    with pytest.raises(redis.ResponseError, match="it holds more than it says"):
        owner.turn(("hold", ""), ("hold", first), number=9)
    keep(owner)
    assert waiting(owner) == [b"a", b"b", b"c"]
    assert owner.ask(("hold", ""), ("hold", first), number=9).stale == [first]


def test_after_a_gap_a_held_tag_that_is_unknown_is_stale(owner: Owner) -> None:
    assert owner.ask(("hold", ""), ("hold", "lost:1:1"), number=9).stale == ["lost:1:1"]


def test_after_a_gap_settles_said_again_append_once(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    owner.ask(("hold", ""), ("hold", tag), ("settle", tag, "id", OUTCOME), number=7)
    owner.ask(("hold", ""), ("hold", tag), ("settle", tag, "id", OUTCOME), number=12)
    assert outcomes(owner) == [OUTCOME]
    assert waiting(owner) == []


def test_the_turn_after_a_gap_is_numbered_as_usual(owner: Owner, publish: Any) -> None:
    owner.ask(("hold", ""), number=9)
    publish()
    assert owner.take() == [f"{owner.name}:10:1"]


# --- words --------------------------------------------------------------------------------------------------------


def test_settling_appends_every_outcome_in_order_and_releases_the_claim(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    owner.ask(("began", tag, "id"))
    assert owner.ask(("settle", tag, "id", b"one", b"two")).stale == []
    assert outcomes(owner) == [b"one", b"two"]
    assert owner.claims == {}


def test_settling_forgets_earlier_deaths_and_hand_backs(owner: Owner, publish: Any) -> None:
    deaths = owner.settings.key("deaths")
    owner.client.hset(deaths, mapping={"id": 3, "back:id": 7, "other": 1})
    publish()
    [tag] = owner.take()
    owner.ask(("settle", tag, "id", OUTCOME))
    assert owner.client.hgetall(deaths) == {b"other": b"1"}


@pytest.mark.parametrize(
    "word",
    [("settle", "id", OUTCOME), ("note", OUTCOME), ("back",), ("requeue",), ("lost", "id", 0, OUTCOME),
     ("park", 1), ("unknown",), ("aside",), ("began", "id")],
)  # fmt: skip
def test_a_word_about_a_claim_of_another_owner_is_stale_and_does_nothing(
    owner: Owner, other: Owner, publish: Any, word: tuple[Any, ...]
) -> None:
    publish()
    [tag] = other.take()
    owner.ask()
    before = everything(owner)
    assert owner.ask((word[0], tag, *word[1:])).stale == [tag]
    changed = {key for key, value in everything(owner).items() if before.get(key) != value}
    assert changed == {owner.settings.key(f"turns:{owner.name}").encode()}


def test_a_claim_is_settled_once(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    owner.ask(("settle", tag, "id", OUTCOME))
    assert owner.ask(("settle", tag, "id", OUTCOME)).stale == [tag]
    assert outcomes(owner) == [OUTCOME]


def test_progress_is_appended_while_the_claim_is_held(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    owner.ask(("note", tag, b"half"))
    assert outcomes(owner) == [b"half"]
    assert list(owner.claims) == [tag.encode()]


def test_a_message_handed_back_is_the_next_one_taken(owner: Owner, publish: Any) -> None:
    publish(b"first", b"second")
    [tag] = owner.take()
    owner.ask(("back", tag))
    assert waiting(owner) == [b"first", b"second"]


def test_a_requeued_message_waits_behind_all_others(owner: Owner, publish: Any) -> None:
    publish(b"first", b"second")
    [tag] = owner.take()
    owner.ask(("requeue", tag))
    assert waiting(owner) == [b"second", b"first"]


@pytest.mark.parametrize("word", ["back", "requeue"])
def test_a_message_whose_run_had_begun_bears_one_blank_for_it(owner: Owner, publish: Any, word: str) -> None:
    publish(b'{"a": 1}')
    for _ in range(2):
        [tag] = owner.take()
        owner.ask((word, tag, 1))
        assert waiting(owner) == [b'{"a": 1} ']


def test_a_message_goes_back_to_the_list_of_its_priority(owner: Owner, publish: Any) -> None:
    owner.queues = ("q\x06\x163",)
    publish(b"m", queue="q\x06\x163")
    [tag] = owner.take()
    owner.ask(("back", tag))
    assert waiting(owner, "q\x06\x163") == [b"m"]


def test_what_cannot_be_read_is_set_aside_for_a_person(owner: Owner, publish: Any) -> None:
    publish(b"{")
    [tag] = owner.take()
    owner.ask(("aside", tag))
    assert owner.client.lrange(owner.settings.key("unreadable"), 0, -1) == [owner.settings.key("q").encode() + b"\n{"]
    assert owner.claims == {}


def test_a_run_may_die_five_times_and_the_sixth_time_it_is_dead(owner: Owner, publish: Any) -> None:
    [message] = publish()
    for death in range(6):
        assert waiting(owner) == [message], f"after {death} deaths"
        [tag] = owner.take()
        owner.ask(("began", tag, "id"), ("lost", tag, "id", 5, OUTCOME))
        message = message.rstrip() + b" "
    assert waiting(owner) == []
    assert outcomes(owner) == [OUTCOME]
    dead = owner.client.hgetall(owner.settings.key("dead"))
    assert dead == {b"id": owner.settings.key("q").encode() + b"\n" + message}
    assert owner.claims == {}
    assert owner.client.hgetall(owner.settings.key("deaths")) == {}


# --- the doorbell -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [("back",), ("requeue",), ("lost", "id", 5, OUTCOME)])
def test_a_message_that_goes_back_rings(owner: Owner, publish: Any, word: tuple[Any, ...]) -> None:
    publish()
    [tag] = owner.take()
    owner.ask((word[0], tag, *word[1:]))
    assert owner.client.llen(owner.settings.key("doorbell:q")) == 1


def test_a_message_of_any_priority_rings_its_queues_one_bell(owner: Owner, publish: Any) -> None:
    owner.queues = ("q\x06\x166",)
    publish(queue="q\x06\x166")
    [tag] = owner.take()
    owner.ask(("back", tag))
    assert owner.client.llen(owner.settings.key("doorbell:q")) == 1


def test_a_turn_that_finds_its_queues_empty_silences_the_bell(owner: Owner, publish: Any) -> None:
    bell = owner.settings.key("doorbell:q")
    publish(), publish()
    owner.client.lpush(bell, 1, 1, 1)
    owner.take(2)
    assert owner.client.llen(bell) == 3, "it was not known that the queue is empty"
    owner.take(1)
    assert owner.client.llen(bell) == 0


def test_a_turn_that_has_no_room_leaves_the_bell_to_others(owner: Owner) -> None:
    bell = owner.settings.key("doorbell:q")
    owner.client.lpush(bell, 1)
    owner.ask(wanted=0)
    assert owner.client.llen(bell) == 1


# --- revoked ------------------------------------------------------------------------------------------------------


def test_a_revoked_id_is_told_once(owner: Owner) -> None:
    owner.client.xadd(owner.settings.key("revoked"), {"id": "r1"})
    answer = owner.ask()
    assert answer.revoked == [b"r1"]
    assert owner.ask(known=answer.last_revoked).revoked == []


def test_a_newcomer_is_told_what_was_revoked_before_it_came(owner: Owner, other: Owner) -> None:
    revoked = owner.settings.key("revoked")
    owner.client.xadd(revoked, {"id": "r1"})
    owner.ask()
    owner.client.xadd(revoked, {"id": "r2"})
    assert other.ask().revoked == [b"r1", b"r2"]


def test_nothing_is_given_out_before_all_that_is_revoked_has_been_told(owner: Owner, publish: Any) -> None:
    publish()
    with owner.client.pipeline() as pipe:
        for number in range(1500):
            pipe.xadd(owner.settings.key("revoked"), {"id": f"r{number}"})
        pipe.execute()
    first = owner.ask(wanted=1)
    assert first.tags == []
    second = owner.ask(wanted=1, known=first.last_revoked)
    assert len(first.revoked) + len(second.revoked) == 1500
    assert len(second.tags) == 1


# --- reclaim.lua -----------------------------------------------------------------------------------------------------


def keep(owner: Owner) -> int:
    """One round of the keeper."""
    return keeping.put_back_what_the_dead_held(owner.client, owner.settings)  # type: ignore[func-returns-value]


def die(owner: Owner) -> None:
    """Its lease ran out."""
    owner.client.zadd(owner.settings.key("leases"), {owner.name: 1})


def test_nothing_is_put_back_while_the_lease_runs(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    key = owner.settings.key
    names = (f"claims:{owner.name}", "leases", "deaths", "outcomes", f"turns:{owner.name}", "dead")
    words = (owner.name, owner.settings.key_prefix, "back", tag, 2, key("q"), "id")
    before = everything(owner)
    assert RECLAIM.run(owner.client, [key(name) for name in names], [*words]) == -1
    assert everything(owner) == before


def test_what_a_dead_owner_held_goes_back_in_order_and_rings(owner: Owner, publish: Any) -> None:
    publish(b"a", b"b", b"c", b"d")
    owner.take(2), owner.take(1)
    die(owner)
    keep(owner)
    assert waiting(owner) == [b"a", b"b", b"c", b"d"]
    assert owner.claims == {}
    assert owner.client.llen(owner.settings.key("doorbell:q")) == 3
    assert owner.client.zcard(owner.settings.key("leases")) == 0


def test_more_than_one_script_can_move_goes_back_in_order(owner: Owner, publish: Any) -> None:
    messages = [b"%d" % number for number in range(keeping.AT_ONCE * 2 + 3)]
    publish(*messages)
    owner.take(1000), owner.take(3)
    die(owner)
    keep(owner)
    assert waiting(owner) == messages


def test_only_runs_that_had_begun_count_as_deaths(owner: Owner, publish: Any) -> None:
    publish(b'{"headers": {"id": "begun"}}', b'{"headers": {"id": "not"}}')
    begun, _ = owner.take(2)
    owner.ask(("began", begun, "begun"))
    die(owner)
    keep(owner)
    assert owner.client.hgetall(owner.settings.key("deaths")) == {b"begun": b"1", b"back:not": b"1"}


def test_the_sixth_death_of_a_worker_with_a_task_is_the_tasks(owner: Owner, publish: Any) -> None:
    [message] = publish(b'{"headers": {"id": "poison"}}')
    for death in range(6):
        assert waiting(owner) == [message], f"after {death} deaths"
        [tag] = owner.take()
        owner.ask(("began", tag, "poison"))
        die(owner)
        keep(owner)
        message = message.rstrip() + b" "
        owner.name = f"celery@w1.life{death}"
        owner.number = 0
    assert waiting(owner) == []
    assert list(owner.client.hgetall(owner.settings.key("dead"))) == [b"poison"]
    *broken_off, end = outcomes(owner)
    assert [b'"REQUEUED"' in told for told in broken_off] == [True] * 5
    assert b'"DEAD"' in end


def test_an_owner_that_comes_back_late_is_told_that_all_it_held_is_stale(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    die(owner)
    keep(owner)
    assert owner.turn(("settle", tag, "id", OUTCOME)) == [b"gap", 1]
    answer = owner.ask(("hold", ""), ("hold", tag), ("settle", tag, "id", OUTCOME))
    assert answer.stale == [tag]
    assert outcomes(owner) == []


def test_an_owner_that_comes_back_late_is_not_asked_for_what_it_said_before(owner: Owner, publish: Any) -> None:
    """What Redis did not forget must not be said again: an outcome of no claim would be appended twice."""
    publish()
    owner.take()
    owner.ask(("loose", "", OUTCOME))
    die(owner)
    keep(owner)
    assert owner.turn() == [b"gap", 2]


def test_an_owner_that_came_back_late_is_heard_again(owner: Owner, publish: Any) -> None:
    publish()
    owner.take()
    die(owner)
    keep(owner)
    assert owner.turn() == [b"gap", 1]
    owner.ask(("hold", ""))
    assert len(owner.take()) == 1


def test_everyone_is_granted_one_more_lease(owner: Owner, publish: Any) -> None:
    publish()
    owner.take()
    die(owner)
    keeping.grant_one_more_lease(owner.client, owner.settings)
    keep(owner)
    assert len(owner.claims) == 1


# --- parked -------------------------------------------------------------------------------------------------------


def now() -> int:
    return int(time.time() * 1000)


def test_a_parked_message_is_nobodys_until_its_time_is_near(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    owner.ask(("park", tag, now() + 3_600_000))
    keeping.feed_what_is_due(owner.client, owner.settings)
    assert owner.claims == {}
    assert waiting(owner) == []
    assert owner.client.zcard(owner.settings.key("parked")) == 1


def test_a_message_whose_task_is_unknown_is_nobodys_and_keeps_its_list(owner: Owner, publish: Any) -> None:
    publish()
    [tag] = owner.take()
    [claim] = owner.claims.values()
    owner.ask(("unknown", tag))
    assert (owner.claims, waiting(owner)) == ({}, [])
    assert owner.client.zrange(owner.settings.key("unknown"), 0, -1) == [claim]


def test_a_parked_message_whose_time_is_near_is_fed_once_and_rings(owner: Owner, publish: Any) -> None:
    [message] = publish()
    [tag] = owner.take()
    owner.ask(("park", tag, now() + 5_000))
    keys = [owner.settings.key("parked"), owner.settings.key("leases")]
    assert UNPARK.run(owner.client, keys, [owner.settings.key_prefix, 30, 500, "*"]) == 1
    assert UNPARK.run(owner.client, keys, [owner.settings.key_prefix, 30, 500, "*"]) == 0
    assert waiting(owner) == [message]
    assert owner.client.llen(owner.settings.key("doorbell:q")) == 1


def test_parked_messages_are_fed_in_the_order_of_their_times(owner: Owner, publish: Any) -> None:
    publish(b"later", b"sooner")
    later, sooner = owner.take(2)
    owner.ask(("park", later, now() + 2000), ("park", sooner, now() + 1000))
    keeping.feed_what_is_due(owner.client, owner.settings)
    assert waiting(owner) == [b"sooner", b"later"]


# --- the script itself --------------------------------------------------------------------------------------------


def test_a_script_that_redis_has_forgotten_is_said_in_full(owner: Owner, publish: Any) -> None:
    publish()
    owner.ask()
    owner.client.script_flush()
    assert len(owner.take()) == 1


def test_the_server_forgets_the_turns_of_an_owner_that_says_no_more(owner: Owner) -> None:
    owner.lease = 5
    owner.ask()
    eventually(lambda: not owner.client.exists(owner.settings.key(f"turns:{owner.name}")), timeout=5)


def test_redis_errors_of_a_turn_are_raised(owner: Owner) -> None:
    owner.client.set(owner.settings.key("leases"), "not a sorted set")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        owner.ask()
