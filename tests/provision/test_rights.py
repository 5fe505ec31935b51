"""What a stolen worker credential cannot do, tried one by one, and that it can do what it may.

Redis and NATS are real,
    with the rules of howl.provision.permissions. The credential `worker` was granted the queue `mine`;
`neighbour` was granted `theirs`.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
import redis
from celery import Celery
from nats.js.api import StreamConfig

from howl.broker.namespaces import Namespace, may_push
from howl.broker.purge import purge
from howl.broker.scripts import PUSH, RECLAIM, TURN, UNPARK, load_all
from howl.broker.transport import publishing_for
from howl.bursts.admission import LeaveAnswer, LeaveRequest, ask
from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import nats as messaging
from howl.errors import NotGranted, ServerUnavailable, SettingsError
from howl.provision.permissions import Grant, server_rules, worker_rules, worker_subjects
from howl.queue_names import ITS_OWN, fault_of
from howl.server.maintenance import lease_reaper as keeping
from howl.server.requests import Question, Questions
from tests.helpers.secured import ADMIN, SERVER, Secured

PREFIX, SUBJECTS = "t:", "t"
MINE, THEIRS = Namespace(PREFIX, "worker"), Namespace(PREFIX, "neighbour")
MESSAGE = b'{"headers": {"id": "task-1"}}'


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory(prefix="howl-rights-", dir="/tmp") as folder:
        grants = [Grant("worker", ("mine",)), Grant("neighbour", ("theirs",)), Grant("everywhere")]
        made = Secured(Path(folder), PREFIX, SUBJECTS, grants)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def admin(secured: Secured) -> Iterator[Any]:
    """Redis as its owner sees it, with something in every place that a worker should not reach."""
    with secured.client(ADMIN) as client:
        client.flushall()
        load_all(client)
        client.lpush("t:theirs", MESSAGE)
        client.lpush("t:theirs\x06\x163", MESSAGE)
        client.lpush("t:worker.permanent", MESSAGE)
        client.lpush("other:mine", MESSAGE)
        client.xadd("t:outcomes", {"outcome": "secret"})
        client.hset("t:inflight", "task-1", 1)
        client.sadd("t:_kombu.binding.theirs", "theirs\x06\x16\x06\x16theirs")
        for namespace in (MINE, THEIRS):
            client.xadd(namespace.key("outcomes"), {"outcome": "secret"})
            client.zadd(namespace.key("leases"), {"celery@other.boot": 1e14})
            client.zadd(namespace.key("parked"), {b"t:theirs\n" + MESSAGE: 1e15})
            client.zadd(namespace.key("unknown"), {b"t:theirs\n" + MESSAGE: 1e15})
            client.hset(namespace.key("dead"), "task-1", b"t:theirs\n" + MESSAGE)
            client.lpush(namespace.key("unreadable"), "secret")
        client.hset(THEIRS.key("claims:celery@other.boot"), "celery@other.boot:1:1", b"t:theirs\n" + MESSAGE)
        yield client


@pytest.fixture
def thief(secured: Secured, admin: Any) -> Iterator[Any]:
    """Whoever has the worker's credential."""
    with secured.client("worker") as client:
        yield client


def contents(admin: Any) -> dict[bytes, Any]:
    """All that Redis holds."""
    return {key: admin.dump(key) for key in admin.scan_iter(count=1000)}


def refused(thief: Any, *command: Any) -> None:
    """The command is refused for want of rights, and not for something else."""
    with pytest.raises(redis.RedisError, match=r"(?i)no permission|can't access|ACL failure"):
        thief.execute_command(*command)


# --- Redis itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ACL WHOAMI", "ACL LIST", "ACL SETUSER worker +@all", "ACL LOAD", "CONFIG GET *", "CONFIG SET maxmemory 1",
        "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "INFO", "MONITOR", "CLIENT LIST",
        "CLIENT KILL ID 1", "CLIENT PAUSE 1000", "SHUTDOWN", "REPLICAOF NO ONE", "SLAVEOF NO ONE", "SAVE",
        "BGREWRITEAOF", "SELECT 1", "SWAPDB 0 1", "PUBSUB CHANNELS", "SLOWLOG GET", "LATENCY LATEST", "COMMAND COUNT",
        "MULTI", "EXEC", "MEMORY USAGE t:mine SAMPLES 0", "HKEYS t:_by:worker:claims:x", "GET t:mine", "HGETALL t:mine",
        "MODULE LIST", "FUNCTION LIST", "FUNCTION FLUSH", "SCRIPT FLUSH", "SCRIPT KILL", "MEMORY DOCTOR", "WAIT 0 0",
        "SYNC", "PSYNC ? -1", "LASTSAVE", "CLUSTER INFO", "FAILOVER",
    ],
)  # fmt: skip
def test_redis_itself_is_out_of_reach(thief: Any, command: str) -> None:
    refused(thief, *command.split())


@pytest.mark.parametrize("command", [("EVAL", "return 1", 0), ("SCRIPT", "LOAD", "return 1"), ("FUNCTION", "LOAD", "")])
def test_no_script_of_its_own_runs(thief: Any, command: tuple[Any, ...]) -> None:
    refused(thief, *command)


# --- keys that are not its own ---------------------------------------------------------------------------------------

#: What a message could be taken with, put with, or spoilt with.
READING = [("LRANGE", 0, -1), ("LINDEX", 0), ("GET",), ("DUMP",), ("HGETALL",), ("HGET", "task-1"), ("HKEYS",),
           ("XRANGE", "-", "+"), ("ZRANGE", 0, -1), ("SMEMBERS",), ("TYPE",), ("LLEN",), ("XLEN",)]  # fmt: skip
WRITING = [("LPUSH", "x"), ("RPUSH", "x"), ("RPOP",), ("BRPOP", 1), ("LTRIM", 1, 0), ("DEL",), ("UNLINK",), ("SET",
    "x"),
           ("PEXPIRE", 1), ("EXPIRE", 1), ("HSET", "a", "b"), ("HDEL", "task-1"), ("HINCRBY", "task-1", 1),
           ("ZADD", 1, "x"), ("XADD", "*", "a", "b"), ("XTRIM", "MAXLEN", 0), ("RENAME", "t:mine"),
           ("COPY", "t:mine"), ("LMOVE", "t:mine", "RIGHT", "LEFT"), ("SADD", "x"), ("RESTORE", 0, "x")]  # fmt: skip
FOREIGN = [
    "other:mine", "mine", "t:theirs", "t:theirs\x06\x163", "t:mines", "t:mine.more", "t:doorbell:theirs",
    "t:worker.permanent", "t:worker.workers", "t:outcomes", "t:inflight", "t:leases", "t:parked", "t:unknown", "t:dead",
    "t:deaths",
    "t:unreadable", "t:claims:celery@w1.boot", "t:turns:celery@w1.boot", "t:group:1", "t:unacked",
    "t:_by:neighbour:outcomes",    "t:_by:neighbour:leases", "t:_by:neighbour:parked", "t:_by:neighbour:dead",
    "t:_by:neighbour:unreadable",
    "t:_by:neighbour:deaths", "t:_by:neighbour:claims:celery@other.boot", "t:_by:neighbour:turns:celery@other.boot",
    "t:_by:worker2:leases",
]  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_a_key_that_is_not_its_own_can_be_neither_read_nor_written(thief: Any, admin: Any, key: str) -> None:
    before = contents(admin)
    for name, *arguments in READING + WRITING:
        refused(thief, name, key, *arguments)
    assert contents(admin) == before


@pytest.mark.parametrize("name", ["leases", "outcomes", "parked", "unknown", "dead", "unreadable"])
def test_what_its_own_workers_left_for_the_server_cannot_be_read_again(thief: Any, name: str) -> None:
    for command, *arguments in READING[:-3]:
        refused(thief, command, MINE.key(name), *arguments)


@pytest.mark.parametrize(
    "key", ["t:revoked", "t:_kombu.binding.mine", "t:_kombu.binding.theirs", "t:_kombu.binding.celery"]
)
def test_what_all_workers_read_none_can_write(thief: Any, admin: Any, key: str) -> None:
    before = contents(admin)
    for name, *arguments in WRITING:
        refused(thief, name, key, *arguments)
    assert contents(admin) == before


def test_answers_to_somebody_elses_remote_control_cannot_be_read(thief: Any) -> None:
    for name, *arguments in READING[:-3]:
        refused(thief, name, "t:1234.reply.celery.pidbox", *arguments)


@pytest.mark.parametrize(
    "channel", ["t:/0.celery.pidbox", "t:/0.celeryev/worker.heartbeat", "other", "__keyspace@0__:x"]
)
def test_nothing_can_be_published(thief: Any, channel: str) -> None:
    refused(thief, "PUBLISH", channel, "x")
    refused(thief, "SPUBLISH", channel, "x")


@pytest.mark.parametrize("pattern", ["*", "t:*", "t:/0.celeryev/*", "t:/0.celery.pidbo?", "other", "__keyspace@0__:*"])
def test_nothing_but_remote_control_can_be_listened_to(thief: Any, pattern: str) -> None:
    refused(thief, "PSUBSCRIBE", pattern)
    refused(thief, "SUBSCRIBE", pattern)


# --- through the server's own scripts ---------------------------------------------------------------------------------


def turn(client: Any, *words: Any, owner: str = "celery@thief.boot", namespace: Namespace = MINE, prefix: str = PREFIX,
         lists: tuple[str, ...] = ("t:mine",), bells: tuple[str, ...] = (), number: int = 1) -> Any:  # fmt: skip
    """One turn, as whoever runs the client would say it."""
    keys = [namespace.key(f"claims:{owner}"), namespace.key(f"turns:{owner}"), *lists, *bells]
    said = [part for kind, tag, *values in words for part in (kind, tag, len(values), *values)]
    numbers = [number, 30_000, 10, 1 << 20, "0-0", len(lists), 100_000]
    return TURN.run(client, keys, [prefix, namespace.root, owner, *numbers, *said])


DENIED = r"(?i)no permission|can't access|ACL failure"


@pytest.mark.parametrize(
    "told",
    [
        {"lists": ("t:theirs",)}, {"lists": ("t:mine", "t:theirs\x06\x163")}, {"lists": ("t:worker.permanent",)},
        {"lists": ("other:mine",)}, {"lists": ("t:inflight",)}, {"bells": ("t:doorbell:theirs",)},
        {"bells": ("t:theirs",)},
        {"namespace": THEIRS}, {"namespace": THEIRS, "owner": "celery@other.boot"}, {"namespace": Namespace(PREFIX)},
        {"prefix": "other:"},
        {"owner": "../../x", "namespace": THEIRS},
    ],
)  # fmt: skip
def test_a_turn_about_what_was_not_granted_is_refused_and_changes_nothing(
    thief: Any, admin: Any, told: dict[str, Any]
) -> None:
    before = contents(admin)
    with pytest.raises(redis.ResponseError, match=DENIED):
        turn(thief, **told)
    assert contents(admin) == before


def test_a_forged_claim_cannot_be_handed_to_a_queue_that_was_not_granted(thief: Any, admin: Any) -> None:
    thief.hset(MINE.key("claims:celery@thief.boot"), "celery@thief.boot:1:1", b"t:theirs\nforged")
    for word in ("back", "requeue", "lost"):
        with pytest.raises(redis.ResponseError, match=DENIED):
            turn(thief, (word, "celery@thief.boot:1:1", "id", 5, "outcome"))
    assert admin.lrange("t:theirs", 0, -1) == [MESSAGE]


@pytest.mark.parametrize(
    ("script", "keys", "arguments"),
    [
        (PUSH, ["t:inflight", "t:mine", "t:doorbell:mine"], ["task-2", MESSAGE]),
        (PUSH, [MINE.key("deaths"), "t:theirs", "t:doorbell:mine"], ["task-2", MESSAGE]),
        (RECLAIM, [THEIRS.key(name) for name in ("claims:celery@other.boot", "leases", "deaths", "outcomes",
        "turns:x", "dead")],
         ["celery@other.boot", PREFIX, "back", "celery@other.boot:1:1", 2, "t:theirs", "task-1"]),
        (UNPARK, [THEIRS.key("parked")], [PREFIX, 10**9, 10, "*"]),
        (UNPARK, [MINE.key("parked")], [PREFIX, 10**9, 10, "*"]),
    ],
    ids=["push, marking", "push to another queue", "keep another's", "feed another's", "feed"],
)  # fmt: skip
def test_the_servers_scripts_give_it_no_rights(
    thief: Any, admin: Any, script: Any, keys: list[str], arguments: list[Any]
) -> None:
    before = contents(admin)
    with pytest.raises(redis.ResponseError, match=DENIED):
        script.run(thief, keys, arguments)
    assert contents(admin) == before


# --- through the server, which may do more ---------------------------------------------------------------------------


@pytest.fixture
def settings(secured: Secured, admin: Any) -> Settings:
    """What `howl server` is told."""
    return load_settings(
        redis_url=secured.redis_url(SERVER), ca_file=secured.ca, key_prefix=PREFIX, subject_prefix=SUBJECTS
    )


@pytest.fixture
def server(secured: Secured, settings: Settings) -> Iterator[Any]:
    with secured.client(SERVER) as client:
        yield client


def forge(thief: Any, *claims: bytes) -> None:
    """Claims that nobody made, of an owner whose lease is over."""
    for number, claim in enumerate(claims, 1):
        thief.hset(MINE.key("claims:celery@thief.boot"), f"celery@thief.boot:1:{number}", claim)
    thief.zadd(MINE.key("leases"), {"celery@thief.boot": 1})


@pytest.mark.parametrize(
    "name", [b"t:theirs", b"t:theirs\x06\x163", b"t:worker.permanent", b"other:mine", b"t:inflight", b""]
)
def test_the_keeper_puts_a_forged_claim_on_no_queue_that_was_not_granted(
    thief: Any, admin: Any, server: Any, settings: Settings, name: bytes
) -> None:
    forge(thief, name + b"\nforged", b"t:mine\nhonest")
    before = {key: value for key, value in contents(admin).items() if not key.startswith(b"t:_by:worker:")}
    keeping.put_back_what_the_dead_held(server, settings)
    assert admin.lrange("t:mine", 0, -1) == [b"honest"]
    assert admin.lrange("t:unreadable", 0, -1) == [name + b"\nforged"]
    after = contents(admin)
    assert {key: after.get(key) for key in before} == before
    assert admin.exists(MINE.key("claims:celery@thief.boot")) == 0


def test_the_keeper_feeds_a_parked_message_to_no_queue_that_was_not_granted(
    thief: Any, admin: Any, server: Any, settings: Settings
) -> None:
    thief.zadd(MINE.key("parked"), {b"t:theirs\nforged": 1, b"t:mine\nhonest": 2, b"no line": 3})
    keeping.feed_what_is_due(server, settings)
    assert admin.lrange("t:mine", 0, -1) == [b"honest"]
    assert admin.lrange("t:theirs", 0, -1) == [MESSAGE]
    assert set(admin.lrange("t:unreadable", 0, -1)) == {b"t:theirs\nforged", b"no line"}


def test_a_claim_that_changes_while_the_keeper_looks_goes_nowhere(thief: Any, admin: Any, server: Any) -> None:
    forge(thief, b"t:theirs\nforged")
    keys = [MINE.key(name) for name in ("claims:celery@thief.boot", "leases", "deaths", "outcomes", "turns:x", "dead")]
    seen = ["celery@thief.boot", PREFIX, "back", "celery@thief.boot:1:1", 2, "t:mine", "id"]
    assert RECLAIM.run(server, keys, seen) == 0
    assert (admin.llen("t:mine"), admin.lrange("t:theirs", 0, -1)) == (0, [MESSAGE])


@pytest.mark.parametrize("name", ["leases", "parked", "claims:celery@thief.boot"])
def test_an_area_that_makes_no_sense_holds_up_no_other(
    thief: Any, admin: Any, server: Any, settings: Settings, name: str
) -> None:
    admin.delete(MINE.key(name))
    forge(thief, b"t:mine\nx")
    admin.delete(MINE.key(name))
    thief.lpush(MINE.key(name), "nonsense")
    admin.delete(THEIRS.key("parked"))
    admin.zadd(THEIRS.key("parked"), {b"t:theirs\nin time": 1})
    admin.delete("t:theirs")
    keeping.grant_one_more_lease(server, settings)
    keeping.SharedNames().look(server, settings)
    keeping.put_back_what_the_dead_held(server, settings)
    keeping.feed_what_is_due(server, settings)
    assert b"in time" in admin.lrange("t:theirs", 0, -1)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """The server's Celery application."""
    made = create_app(settings)
    made.loader.import_default_modules()
    yield made
    made.close()


@pytest.mark.parametrize("options", [{"queue": "theirs"}, {"queue": "worker.permanent"}, {"exchange": "",
                                     "routing_key": "theirs"},
                                     {"queue": "theirs", "priority": 3}])  # fmt: skip
def test_what_the_server_publishes_for_a_worker_goes_no_further_than_the_workers_own_word(
    app: Celery, admin: Any, options: dict[str, Any]
) -> None:
    before = contents(admin)
    with publishing_for("worker"), pytest.raises(NotGranted):
        app.send_task("command.run", **options)
    assert contents(admin) == before


def test_the_server_broadcasts_nothing_for_a_worker(app: Celery) -> None:
    with publishing_for("worker"), pytest.raises(NotGranted):
        app.control.broadcast("shutdown")


def test_what_the_server_publishes_for_a_worker_reaches_its_own_queue(app: Celery, admin: Any) -> None:
    with publishing_for("worker"):
        app.send_task("tests.echo", queue="mine")
    assert admin.llen("t:mine") == 1


# --- what it may ------------------------------------------------------------------------------------------------------


def test_the_credential_takes_settles_and_parks_in_its_own_queue(thief: Any, admin: Any) -> None:
    thief.lpush("t:mine", "one", "two", "three")
    thief.lpush("t:mine\x06\x169", "late")
    _, given, _, _, _, _ = turn(thief, lists=("t:mine", "t:mine\x06\x169"), bells=("t:doorbell:mine",))
    assert given[2::3] == [b"one", b"two", b"three", b"late"]
    one, two, three, late = (tag.decode() for tag in given[::3])
    words = [("began", one, "id"), ("note", one, "half"), ("settle", one, "id", "done"), ("park", two, 1),
             ("lost", three, "id3", 5, "dead"), ("aside", late)]  # fmt: skip
    status, _, stale, _, _, _ = turn(thief, *words, number=2, bells=("t:doorbell:mine",), lists=())
    assert (status, stale) == (b"ok", [])
    assert [fields[b"outcome"] for _, fields in admin.xrange(MINE.key("outcomes"))][1:] == [b"half", b"done"]
    assert admin.zscore(MINE.key("parked"), "t:mine\ntwo") == 1
    assert admin.lrange("t:mine", 0, -1) == [b"three "]  # its run had begun: see turn.lua


def test_the_credential_hears_what_is_revoked_and_remote_control(thief: Any, admin: Any) -> None:
    admin.xadd("t:revoked", {"task_id": "task-9"})
    assert turn(thief)[3][1:] == [[b"task_id", b"task-9"]]
    with thief.pubsub() as listener:
        listener.psubscribe("t:/0.celery.pidbox")
        assert listener.get_message(timeout=5)["type"] == "psubscribe"


def test_the_credential_takes_what_is_assigned_to_workers_named_after_it(thief: Any) -> None:
    for name in ("worker.worker", "worker.worker-1", "worker.worker-1\x06\x163"):
        assert thief.lpush(f"t:{name}", "x") == 1
    assert thief.lpush("t:doorbell:worker.worker-1", 1) == 1


def test_a_credential_for_every_queue_reaches_every_queue_and_no_other_area(secured: Secured, admin: Any) -> None:
    with secured.client("everywhere") as client:
        assert client.lindex("t:theirs", 0) == MESSAGE
        assert client.lpush("t:worker.permanent", "x") == 2
        for key in (
            "other:mine",
            THEIRS.key("claims:celery@other.boot"),
            THEIRS.key("outcomes"),
            "t:_kombu.binding.theirs",
        ):
            refused(client, "LPUSH", key, "x")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["*", "a*", "a?", "[ab]", "a\\", "a b", "a\nb", "a\x06\x163", "", "outcomes",
                                     "leases", "_by:x",
                                   "_kombu.binding.x", "claims:x", "doorbell:x", "x.celery.pidbox",
                                   "inflight"])  # fmt: skip
def test_a_queue_whose_name_would_reach_further_cannot_be_granted(queue: str) -> None:
    with pytest.raises(SettingsError):
        worker_rules(PREFIX, Grant("worker", (queue,)))


@pytest.mark.parametrize("name", ["", "default", "a b", "a:b", "a*", "a/b", "a\n"])
def test_a_credential_whose_name_would_reach_further_cannot_be_made(name: str) -> None:
    with pytest.raises(SettingsError):
        worker_rules(PREFIX, Grant(name, ("mine",)))


@pytest.mark.parametrize("prefix", ["a*:", "a b:", "a[b]:", "a\\:"])
def test_a_prefix_that_would_match_others_is_refused(prefix: str) -> None:
    with pytest.raises(SettingsError):
        worker_rules(prefix, Grant("worker", ("mine",)))
    with pytest.raises(SettingsError):
        server_rules(prefix)


def test_valkey_takes_the_same_rules(tmp_path: Path, stack: Any) -> None:
    with redis.Redis.from_url(stack.urls.redis_url) as client:
        for name, rules in (
            ("rights-w", worker_rules(PREFIX, Grant("w", ("mine",)))),
            ("rights-s", server_rules(PREFIX)),
        ):
            assert client.execute_command("ACL", "SETUSER", name, *rules) == b"OK"
            client.execute_command("ACL", "DELUSER", name)


# --- the server's credential ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ACL LIST", "ACL SETUSER worker +@all", "CONFIG GET *", "FLUSHALL", "FLUSHDB",
                                     "KEYS *",
                                     "SHUTDOWN", "MONITOR", "CLIENT KILL ID 1", "SLOWLOG RESET", "CLIENT PAUSE 1",
                                     "GET other:mine", "SELECT 1"])  # fmt: skip
def test_the_servers_credential_does_not_run_redis_either(server: Any, command: str) -> None:
    refused(server, *command.split())


# --- NATS -------------------------------------------------------------------------------------------------------------


async def _with_nats(
    secured: Secured, user: str, act: Callable[[Any], Any], *, until_refused: bool = False
) -> list[str]:
    """What NATS complained of while the user did something; wait for it `until_refused`, or seconds have passed."""
    complaints: list[str] = []

    async def complain(error: Exception) -> None:
        complaints.append(str(error).lower())

    client = await nats.connect(secured.nats_url(user), error_cb=complain, connect_timeout=5, allow_reconnect=False)
    try:
        await act(client)
        # A complaint may come after the answer to what it is about.
        for turn in range(100):
            await client.flush(5)
            if complaints or (turn == 2 and not until_refused):
                break
            await asyncio.sleep(0.05 * until_refused)
    finally:
        await client.close()
    return complaints


@pytest.fixture
def stream(secured: Secured) -> Iterator[Callable[[], int]]:
    """The bridge's stream with one event in it, made with the server's credential; how many events it holds now."""
    found: list[int] = []

    async def make(client: Any) -> None:
        await client.jetstream().add_stream(StreamConfig(name="t-events", subjects=["t.events.*"]))
        await client.jetstream().purge_stream("t-events")
        await client.jetstream().publish("t.events.neighbour", b"{}")

    async def count(client: Any) -> None:
        found.append((await client.jetstream().stream_info("t-events")).state.messages)

    async def delete(client: Any) -> None:
        await client.jetstream().delete_stream("t-events")

    def messages() -> int:
        asyncio.run(_with_nats(secured, SERVER, count))
        return found[-1]

    asyncio.run(_with_nats(secured, SERVER, make))
    yield messages
    asyncio.run(_with_nats(secured, SERVER, delete))


API = "$JS.API"


@pytest.mark.parametrize(
    "subject",
    [
        "t.progress", "t.events", "t.events.neighbour", "t.events.worker.a", "other.events.worker", "anything",
        "t.leave", "t.leave.neighbour", "t.upload", "t.upload.neighbour", "t.leave-given", "t.inbox.worker.x",
        "t.inbox.neighbour.x", "t.inbox.server.x",
        f"{API}.INFO", f"{API}.STREAM.NAMES", f"{API}.STREAM.INFO.t-events", f"{API}.STREAM.CREATE.mine",
        f"{API}.STREAM.UPDATE.t-events", f"{API}.STREAM.DELETE.t-events", f"{API}.STREAM.PURGE.t-events",
        f"{API}.STREAM.MSG.GET.t-events", f"{API}.STREAM.MSG.DELETE.t-events", f"{API}.DIRECT.GET.t-events",
        f"{API}.CONSUMER.CREATE.t-events", f"{API}.CONSUMER.DELETE.t-events.bridge",
        f"{API}.CONSUMER.MSG.NEXT.t-events.bridge", "$JS.ACK.t-events.bridge.1.1.1.1.0", "$KV.x.y", "$O.x.C.y",
        "$O.t-artifacts.C.neighbour.1", "$O.t-artifacts.C.worker.1", "$O.t-artifacts.M.x",
        f"{API}.STREAM.MSG.GET.OBJ_t-artifacts", f"{API}.DIRECT.GET.OBJ_t-artifacts.x",
        f"{API}.STREAM.PURGE.OBJ_t-artifacts", f"{API}.CONSUMER.CREATE.OBJ_t-artifacts", "_INBOX.x",
        "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ",
    ],
)  # fmt: skip
def test_a_worker_says_nothing_on_another_subject(secured: Secured, stream: Callable[[], int], subject: str) -> None:
    complaints = asyncio.run(
        _with_nats(secured, "worker", lambda client: client.publish(subject, b""), until_refused=True)
    )
    assert [complaint for complaint in complaints if "permissions violation for publish" in complaint]
    assert stream() == 1


@pytest.mark.parametrize("subject", [">", "*", "t.>", "t.events.>", "t.events.worker", "_INBOX.>", "t.inbox.>",
                                     "t.inbox.neighbour.>", "t.inbox.neighbour.x", "t.inbox.server.>", "_R_.>",
                                     "$JS.>", "$SYS.>",
                                     "$JS.EVENT.>", "other.>", "$KV.>", "$O.>",
                                     "$O.t-artifacts.C.worker.*", "$O.t-artifacts.M.*"])  # fmt: skip
def test_a_worker_hears_nothing(secured: Secured, subject: str) -> None:
    complaints = asyncio.run(
        _with_nats(secured, "worker", lambda client: client.subscribe(subject), until_refused=True)
    )
    assert [complaint for complaint in complaints if "permissions violation for subscription" in complaint]


@pytest.mark.parametrize("request_", ["STREAM.PURGE.t-events", "STREAM.DELETE.t-events", "STREAM.MSG.DELETE.t-events"])
def test_a_receipt_that_a_worker_has_sent_to_jetstream_does_nothing_there(
    secured: Secured, stream: Callable[[], int], request_: str
) -> None:
    def say(client: Any) -> Any:
        return client.publish("t.events.worker", b"{}", reply=f"{API}.{request_}")

    assert asyncio.run(_with_nats(secured, "worker", say)) == []
    assert stream() == 2


def test_a_worker_says_its_events(secured: Secured, stream: Callable[[], int]) -> None:
    def say(client: Any) -> Any:
        return client.publish("t.events.worker", b"{}")

    assert asyncio.run(_with_nats(secured, "worker", say)) == []
    assert stream() == 2


def test_a_worker_asks_for_leave_and_hears_the_answer(secured: Secured) -> None:
    settings = load_settings(nats_url=secured.nats_url("worker"), subject_prefix="t")
    asked = LeaveRequest(repository="owner/name", run_id="1", workers=1, runtime=60.0)
    assert asyncio.run(_answered(secured, lambda: ask(asked, settings))).reason == "No."


async def _answered(secured: Secured, question: Callable[[], LeaveAnswer]) -> LeaveAnswer:
    """What the question hears while somebody with the server's rights says no to it."""
    settings = load_settings(nats_url=secured.nats_url(SERVER), subject_prefix="t")
    client = await messaging.Connection().open(settings, "refusing")

    async def refuse(question: Question) -> None:
        await client.publish(question.address, LeaveAnswer(reason="No.").model_dump_json().encode())

    try:
        await Questions(client, settings, "leave", refuse).begin()
        return await asyncio.to_thread(question)
    finally:
        await client.close()


def test_a_credential_without_the_right_to_ask_for_leave_is_told_so(secured: Secured) -> None:
    # It has the right on t.leave alone.
    settings = load_settings(nats_url=secured.nats_url("worker"), subject_prefix="other")
    with pytest.raises(ServerUnavailable, match="run `howl init` on the server"):
        ask(LeaveRequest(repository="owner/name", run_id="1", workers=1, runtime=60.0), settings)


def test_a_worker_answers_nobody_who_asks_for_leave(secured: Secured) -> None:
    complaints = asyncio.run(_with_nats(secured, "worker", lambda client: client.subscribe("t.leave-given")))
    assert [complaint for complaint in complaints if "permissions violation for subscription" in complaint]


def test_no_list_of_subjects_is_empty_which_would_mean_all() -> None:
    assert all(worker_subjects("t", "worker").values())


# --- what the server does for all users' workers ----------------------------------------------------------------------


def test_a_silent_worker_of_any_user_lives_while_its_lease_runs_and_its_name_is_its_users(
    server: Any, admin: Any, settings: Settings
) -> None:
    soon = (admin.time()[0] + 30) * 1000
    admin.delete(MINE.key("leases"), THEIRS.key("leases"))
    admin.zadd(MINE.key("leases"), {"celery@worker-1.boot": soon, "celery@worker-2.boot": 1})
    admin.zadd(THEIRS.key("leases"), {"celery@worker-3.boot": soon, "celery@permanent.boot": soon})
    admin.zadd(Namespace(PREFIX).key("leases"), {"celery@permanent-2.boot": soon})
    named = ["worker-1", "worker-2", "worker-3", "permanent", "permanent-2", "nobody"]
    assert keeping.living_workers(server, settings, named) == ["permanent-2", "worker-1"]
    assert keeping.living_workers(server, settings, ["worker-2"]) == []


def test_a_purge_with_the_servers_credential_takes_what_workers_of_every_user_parked(server: Any, admin: Any) -> None:
    admin.delete(MINE.key("parked"), THEIRS.key("parked"))
    for namespace in (MINE, THEIRS, Namespace(PREFIX), Namespace(PREFIX, SERVER)):
        admin.zadd(namespace.key("parked"), {b't:mine\n{"headers": {"id": "%s"}}' % namespace.user.encode(): 1e15})
    admin.zadd(MINE.key("parked"), {b"t:mines\n" + MESSAGE: 1e15})
    admin.delete("t:outcomes")
    assert purge(server, PREFIX, ["mine", "mine\x06\x163"]) == 3
    ended = [json.loads(fields[b"outcome"])["task_id"] for _, fields in admin.xrange("t:outcomes")]
    assert sorted(ended) == ["default", SERVER, "worker"]
    assert admin.zrange(MINE.key("parked"), 0, -1) == [b"t:mines\n" + MESSAGE]
    assert admin.zcard(THEIRS.key("parked")) == 1, "who may not push to the queue has parked nothing of it"


def test_what_one_user_has_spoilt_keeps_no_other_from_being_purged(
    server: Any, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    admin.delete(MINE.key("parked"), THEIRS.key("parked"))
    admin.lpush(Namespace(PREFIX, "everywhere").key("parked"), "nonsense")
    admin.zadd(MINE.key("parked"), {b"t:mine\n" + MESSAGE: 1e15})
    assert purge(server, PREFIX, ["mine"]) == 1
    assert "What workers of Redis user everywhere parked cannot be purged" in caplog.text


# --- every queue ------------------------------------------------------------------------------------------------------

OWN_KEYS = [*ITS_OWN, "outcomes:bytes", "claims:celery@w1.boot", "turns:x", "group:1", "progress:task-1", "unacked",
            "unacked_index", "unacked_mutex", "_by:worker:leases", "_by:everywher:leases", "_kombu.binding.celery",
            "_x", "_"]  # fmt: skip
BESIDE = sorted({name[:end] for name in OWN_KEYS for end in range(1, len(name))} - {*OWN_KEYS} | {
    "outcomes2", "outcome", "dead-letters", "dead.x", "deaths2", "out", "revoked.x", "Revoked",
    "claim", "claims", "claims-x", "turns", "group", "groups", "progress", "unackx", "leases2", "parked ", "x",
    "celery", "celery\x06\x169", "worker.w1", "doorbell:celery", "doorbell:outcomes", "doorbell", "ünicode", "0", "~",
})  # fmt: skip


@pytest.mark.parametrize("command", ["LPUSH", "RPOP", "LINDEX", "GETRANGE", "HGET", "XADD", "ZADD", "SET"])
def test_a_credential_for_every_queue_reaches_none_of_our_own_keys(admin: Any, command: str) -> None:
    said = {"RPOP": [], "GETRANGE": [0, 1], "XADD": ["*", "a", "b"], "ZADD": [1, "x"]}.get(command, [0])
    ask = ("ACL DRYRUN", "everywhere", command)
    all_workers_read = {"revoked", "_kombu.binding.celery"} if command in {"LINDEX", "GETRANGE", "HGET"} else set()
    assert {key for key in OWN_KEYS if admin.execute_command(*ask, f"t:{key}", *said) == b"OK"} == all_workers_read


def test_a_credential_for_every_queue_reaches_every_name_beside_our_own(admin: Any) -> None:
    expected = [key for key in BESIDE if not fault_of(key.partition("\x06")[0]) or key.startswith("doorbell:")]
    assert len(expected) > 60
    refused_ = [key for key in expected if not may_push(admin, "everywhere", f"t:{key}")]
    assert refused_ == []


def test_what_no_queue_can_be_called_no_credential_for_every_queue_reaches(admin: Any) -> None:
    faulty = [key for key in BESIDE if fault_of(key.partition("\x06")[0]) and not key.startswith("doorbell:")]
    assert [key for key in faulty if may_push(admin, "everywhere", f"t:{key}")] == []
