"""What HOWL rests on within Celery, kombu and redis-py, each by itself: docs/broker.md says what for.

The classes and functions here are nobody's public interface. When one of them changes, the test that names it fails,
before a task is lost for it.
"""

import json
import multiprocessing
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.common import Broadcast
from kombu.transport import redis as kombu_redis

from howl.broker.doorbell import Bell
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.outcomes import ChordCreated
from tests import tasks
from tests.helpers import eavesdropper
from tests.helpers.support import PATIENCE, eventually

QUEUE = Queue("q", Exchange(""), routing_key="q")
#: Seconds in which a message that is there would have come.
MOMENT = 0.5


class Spy:
    """Claims that note what kombu tells them."""

    mark = "owner:"

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.said: list[tuple[Any, ...]] = []

    def listen(self, priorities: list[list[str]]) -> None:
        self.lists = priorities

    def acknowledged(self, tag: str) -> None:
        self.said.append(("acknowledged", tag))

    def rejected(self, tag: str, *, requeue: bool) -> None:
        self.said.append(("rejected", tag, requeue))


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis_client(settings) as made:
        yield made


@pytest.fixture
def channel(app: Celery) -> Iterator[Any]:
    """A channel of HOWL's transport, as a worker's consumer has one."""
    with app.connection_for_read() as connection:
        yield connection.default_channel


@pytest.fixture
def spy(channel: Any) -> Spy:
    """The channel's claims, as in a booted worker."""
    channel.claims = Spy()
    return channel.claims


@pytest.fixture
def plain(settings: Settings) -> Iterator[Connection]:
    """Kombu's own transport in the same namespace."""
    with Connection(settings.redis(), transport_options={"global_keyprefix": settings.key_prefix}) as connection:
        yield connection


def consume(channel: Any, queue: Queue = QUEUE) -> tuple[Consumer, list[Any]]:
    """A consumer of a queue, and the messages it gets."""
    got: list[Any] = []
    consumer = Consumer(channel, [queue], on_message=got.append)
    consumer.consume()
    return consumer, got


def drain(channel: Any) -> None:
    """Give kombu's poller time to read all there is."""
    end = time.monotonic() + MOMENT
    while time.monotonic() < end:
        with suppress(TimeoutError):
            channel.connection.client.drain_events(timeout=MOMENT)


# --- kombu: publishing ------------------------------------------------------------------------------------------------


def test_a_message_tells_its_tasks_id_its_time_and_its_queue_where_the_worker_reads_them(
    app: Celery, client: Any, settings: Settings
) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    sent = app.send_task("tests.add", (1, 1), eta=due)
    message = json.loads(client.lindex(settings.key("celery"), 0))
    assert message["headers"]["id"] == sent.id
    assert datetime.fromisoformat(message["headers"]["eta"]) == due
    assert message["properties"]["delivery_info"]["routing_key"] == "celery"
    assert message["properties"]["delivery_tag"]


@pytest.mark.parametrize("priority", [None, *range(10)])
def test_a_message_lands_where_stock_kombu_puts_it_and_looks_the_same(
    channel: Any, plain: Connection, client: Any, settings: Settings, priority: int | None
) -> None:
    """`Channel._put`, `_q_for_pri` and `_get_message_priority`: any stock client reads what HOWL publishes."""
    for producer in (Producer(channel), Producer(plain)):
        producer.publish([1], routing_key="q", priority=priority, headers={"id": "some-task"})
    (name,) = client.keys(f"{settings.key_prefix}q*")
    ours, stock = map(json.loads, client.lrange(name, 0, -1))
    for message in (ours, stock):
        assert message["properties"].pop("delivery_tag")
    assert ours == stock
    assert client.llen(settings.key("doorbell:q")) == 1


def test_a_batch_hands_its_collector_to_put_and_takes_the_doorbells_commands_too(
    app: Celery, client: Any, settings: Settings
) -> None:
    """`Channel._put(_publish_batch=)` and `PublishBatch.add`."""
    with app.producer_pool.acquire() as producer, producer.batch(max_size=1000):
        for _ in range(3):
            tasks.noop.apply_async(producer=producer)
        assert client.llen(settings.key("celery")) == 0, "it is no batch"
    assert client.llen(settings.key("celery")) == 3
    assert client.llen(settings.key("doorbell:celery")) == 3
    assert client.pttl(settings.key("doorbell:celery")) > 0


def test_a_queue_that_expires_is_left_to_kombu(channel: Any, client: Any, settings: Settings) -> None:
    """`Channel._expires` knows it: HOWL's own pushing sets no time."""
    queue = Queue("brief", Exchange(""), routing_key="brief", expires=60)
    queue(channel).declare()
    Producer(channel).publish([1], routing_key="brief", headers={"id": "some-task"})
    assert 0 < client.pttl(settings.key("brief")) <= 60_000


def test_where_kombu_shows_an_address_it_says_redis(app: Celery) -> None:
    """`Connection.resolve_aliases`: Flower chooses its view of queues by it."""
    with app.connection_for_read() as connection:
        assert connection.info()["transport"] == "redis"
        assert connection.as_uri().startswith("redis://")


# --- kombu: consuming -------------------------------------------------------------------------------------------------


def test_a_task_queue_is_announced_by_priorities_and_no_longer_read_by_kombu(
    channel: Any, spy: Spy, client: Any, settings: Settings
) -> None:
    """`Channel.basic_consume` and `_active_queues`, of which the poller makes its BRPOP."""
    _, got = consume(channel)
    client.lpush(settings.key("q"), b"{}")
    drain(channel)
    assert spy.lists == [["q"], ["q\x06\x163"], ["q\x06\x166"], ["q\x06\x169"]]
    assert (got, client.llen(settings.key("q"))) == ([], 1)


def test_a_queue_that_is_no_longer_consumed_is_no_longer_announced(channel: Any, spy: Spy) -> None:
    """`Channel.basic_cancel`, and `_tag_to_queue`, which says whose tag it is."""
    consumer, _ = consume(channel)
    consumer.cancel()
    assert spy.lists == [[], [], [], []]


def test_without_claims_kombu_reads_the_queue_itself(channel: Any, client: Any) -> None:
    """What the two tests above would show if kombu read no queue at all."""
    _, got = consume(channel)
    Producer(channel).publish([1], routing_key="q", headers={"id": "some-task"})
    channel.connection.client.drain_events(timeout=5)
    assert [message.headers["id"] for message in got] == ["some-task"]


@pytest.mark.parametrize(
    ("say", "heard"),
    [("ack", ("acknowledged", "owner:1:1")), ("reject", ("rejected", "owner:1:1", False)),
     ("requeue", ("rejected", "owner:1:1", True))],
)  # fmt: skip
def test_a_message_that_is_delivered_keeps_its_claims_tag_and_ends_by_it(
    channel: Any, spy: Spy, client: Any, settings: Settings, say: str, heard: tuple[Any, ...]
) -> None:
    """`Transport._deliver`, and `QoS.append`, `ack` and `reject` with the tag that the message came with."""
    _, got = consume(channel)
    delivery = {"exchange": "", "routing_key": "q"}
    channel.connection._deliver({"properties": {"delivery_tag": "owner:1:1", "delivery_info": delivery}}, "q")
    (message,) = got
    assert (message.delivery_tag, message.channel) == ("owner:1:1", channel)
    getattr(message, say)()
    assert spy.said == [heard]
    assert not client.exists(settings.key("unacked"), settings.key("unacked_index"), settings.key("q"))


@pytest.mark.parametrize("claimed", [True, False])
def test_remote_control_is_read_although_the_prefetch_is_full(
    channel: Any, plain: Connection, claimed: bool, app: Celery
) -> None:
    """The poller reads a broadcast only while `QoS.can_consume` says so, which HOWL answers for claims."""
    news = Exchange("news", type="fanout")
    _, got = consume(channel, Broadcast("news-here", exchange=news))
    channel.claims = Spy() if claimed else None
    channel.basic_qos(0, 1, False)
    QUEUE(channel).declare()
    Producer(channel).publish([1], routing_key="q")
    assert channel.basic_get("q"), "nothing fills the prefetch"
    drain(channel)  # until it has subscribed
    Producer(app.connection_for_write(), exchange=news).publish([2])
    drain(channel)
    assert len(got) == claimed


def test_who_listens_to_a_broadcast_is_written_nowhere_and_hears_it_from_stock_kombu_too(
    channel: Any, plain: Connection, client: Any, settings: Settings
) -> None:
    """`Channel._queue_bind`, `_refresh_bindings`, `_delete`; written down, it would outlive who dies."""
    news = Exchange("news", type="fanout")
    queue = Broadcast("news-here", exchange=news, queue_arguments={"x-expires": 60_000})
    consumer, got = consume(channel, queue)
    drain(channel)  # until it has subscribed
    channel.maybe_refresh_binding_expiry()
    Producer(plain.default_channel, exchange=news).publish([1])
    drain(channel)
    assert len(got) == 1
    consumer.cancel()
    channel.queue_delete(queue.name)
    assert not client.keys(f"{settings.key_prefix}_kombu.binding*")


def test_a_broadcast_is_heard_that_was_sent_before_the_loop_first_turned(channel: Any, plain: Connection) -> None:
    """`Poller._register_LISTEN`: a worker says that it is ready, and is spoken to, before its loop turns."""
    news = Exchange("news", type="fanout")
    _, got = consume(channel, Broadcast("news-here", exchange=news))
    Producer(plain.default_channel, exchange=news).publish([1])
    drain(channel)
    assert len(got) == 1


def test_a_connection_that_is_closed_is_no_longer_listened_to_though_a_child_has_it_too(channel: Any) -> None:
    """`Channel._connparams`, `Connection.disconnect`: kombu takes it out of the poll when that no longer can be."""
    consume(channel, Broadcast("news-here", exchange=Exchange("news", type="fanout")))
    connection = channel.subclient.connection
    childs = os.dup(connection._sock.fileno())
    try:
        connection.disconnect()
        assert not channel.connection.cycle.poller.poll(0)
    finally:
        os.close(childs)


def test_a_child_that_closes_a_connection_leaves_its_parent_listening(channel: Any, plain: Connection) -> None:
    """`Connection.pid`: after a fork, what is polled is shared."""
    news = Exchange("news", type="fanout")
    _, got = consume(channel, Broadcast("news-here", exchange=news))
    child = multiprocessing.get_context("fork").Process(target=channel.subclient.connection.disconnect)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    Producer(plain.default_channel, exchange=news).publish([1])
    drain(channel)
    assert len(got) == 1


def test_the_poller_that_outlives_cuts_is_the_one_that_kombu_asks(channel: Any) -> None:
    """`Transport.cycle`: each channel joins it, and it asks `_register_LISTEN` before it listens to a broadcast."""
    asked: list[Any] = []
    cycle = channel.connection.cycle
    register, cycle._register_LISTEN = cycle._register_LISTEN, lambda known: asked.append(known) or register(known)
    consume(channel, Broadcast("news-here", exchange=Exchange("news", type="fanout")))
    drain(channel)
    assert set(asked) == {channel}


def test_a_script_is_run_without_kombus_own_prefixing(channel: Any, client: Any, settings: Settings) -> None:
    """kombu's client prefixes a script's first key alone: HOWL takes its pool and a client without prefixes."""
    digest = client.script_load("return redis.call('SET', KEYS[2], KEYS[1])")
    with channel.conn_or_acquire() as prefixing:
        prefixing.evalsha(digest, 2, "one", settings.key("two"))
        bare = redis.Redis(connection_pool=prefixing.connection_pool)
        bare.evalsha(digest, 2, "one", settings.key("three"))
    assert client.get(settings.key("two")) == settings.key("one").encode()
    assert client.get(settings.key("three")) == b"one"


def test_a_broken_connection_is_among_the_errors_that_kombu_calls_so(channel: Any) -> None:
    """`connection_errors` as `_receive` and `_register_LISTEN` catch them."""
    for error in (redis.ConnectionError, redis.TimeoutError, ConnectionResetError):
        assert issubclass(error, channel.connection_errors)
    assert kombu_redis.Channel._receive is not type(channel)._receive


# --- redis-py ---------------------------------------------------------------------------------------------------------


def test_a_connections_socket_can_be_waited_for(client: Any) -> None:
    """`redis.Connection._sock`: the session waits for it and for its own pipe at once."""
    bell = Bell(client.connection_pool)
    socket = bell.listen(["ring"])
    assert select.select([socket], [], [], 0) == ([], [], [])
    client.lpush("ring", 1)
    assert select.select([socket], [], [], 5)[0] == [socket]
    bell.answer()
    bell.hang_up()


# --- Celery's backend -------------------------------------------------------------------------------------------------


def entries(client: Any, settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(fields[b"outcome"]) for _, fields in client.xrange(settings.key("outcomes"))]


def test_what_cannot_be_stored_at_once_is_stored_again(
    app: Celery, client: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`BaseBackend.store_result` and `_ensure_retryable`, with `exception_safe_to_retry` and `always_retry`."""
    append, failures = app.backend.append, iter([redis.ConnectionError("away"), redis.TimeoutError("slow")])

    def flaky(*args: Any) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        append(*args)

    monkeypatch.setattr(app.backend, "append", flaky)
    app.backend.store_result("some-task", 7, "SUCCESS")
    assert [(entry["task_id"], entry["result"]) for entry in entries(client, settings)] == [("some-task", 7)]
    failures = iter([redis.ConnectionError("away")])
    app.backend._ensure_retryable(flaky, ChordCreated(group_id="g"))
    assert entries(client, settings)[1]["kind"] == "chord"


def test_an_exception_passes_through_encode_result_before_it_is_stored(
    app: Celery, client: Any, settings: Settings
) -> None:
    """`BaseBackend.encode_result`, which makes of an exception its type, module and arguments."""
    app.backend.store_result("some-task", ValueError("x" * (3 << 20)), "FAILURE")
    (entry,) = entries(client, settings)
    assert (entry["result"]["exc_type"], entry["result"]["exc_module"]) == ("ValueError", "builtins")
    assert len(entry["result"]["exc_message"][0]) < settings.outcome_limit


# --- Celery's worker --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["prefork", "threads", "solo"])
def pool(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def notes(tmp_path: Path, start_worker: Any, pool: str) -> Callable[..., list[dict[str, Any]]]:
    """A worker that is overheard, and what has been noted of it, of one task or of all."""
    file = tmp_path / "notes"
    env = {eavesdropper.VARIABLE: str(file), "HOWL_TASK_MODULES": f"tests.tasks,{eavesdropper.__name__}"}
    worker = start_worker("w1", "--concurrency", "1" if pool == "solo" else "2", "--pool", pool, env=env)

    def _notes(task_id: str | None = None) -> list[dict[str, Any]]:
        seen = [json.loads(line) for line in file.read_text().splitlines()]
        return [note | {"main": worker.pid} for note in seen if task_id in (None, note.get("task_id"))]

    return _notes


def test_an_end_is_stored_where_it_ran_and_its_message_acknowledged_after_that_in_the_worker(
    notes: Callable[..., list[dict[str, Any]]], app: Celery, pool: str
) -> None:
    """The order of trace's `store_result` and `Request.acknowledge`; a settle carries the outcomes that are there."""
    sent = app.send_task("tests.add", (1, 1))
    eventually(lambda: [note for note in notes(sent.id) if note["what"] == "acknowledge"])
    seen = [(note["what"], note.get("state"), note["pid"] == note["main"]) for note in notes(sent.id)]
    in_main = pool != "prefork"
    assert seen.index(("stored", "SUCCESS", in_main)) < seen.index(("acknowledge", None, True))


def test_the_run_is_accepted_with_its_process_before_its_end_is_acknowledged(
    notes: Callable[..., list[dict[str, Any]]], app: Celery, pool: str
) -> None:
    """`Request.on_accepted(pid, time)`, by which the session learns that a run has begun."""
    sent = app.send_task("tests.add", (1, 1))
    eventually(lambda: [note for note in notes(sent.id) if note["what"] == "acknowledge"])
    names = [note["what"] for note in notes(sent.id)]
    assert names.index("on_accepted") < names.index("acknowledge")
    accepted, stored = ({note["what"]: note for note in notes(sent.id)}[what] for what in ("on_accepted", "stored"))
    assert accepted["pid"] == accepted["main"]
    assert accepted["child"] == stored["pid"]


def test_the_message_is_named_alike_in_the_request_where_it_runs_and_where_it_is_acknowledged(
    notes: Callable[..., list[dict[str, Any]]], app: Celery
) -> None:
    """`request.properties["delivery_tag"]` in the child, `Request.message.delivery_tag` in the parent: the claim's."""
    sent = app.send_task("tests.add", (1, 1))
    eventually(lambda: [note for note in notes(sent.id) if note["what"] == "acknowledge"])
    tags = {note["what"]: note["tag"] for note in notes(sent.id) if "tag" in note}
    assert tags["stored"] == tags["acknowledge"]
    assert tags["stored"].startswith("celery@w1.")


def test_a_run_tells_which_tasks_it_started(
    notes: Callable[..., list[dict[str, Any]]], app: Celery, client: Any, settings: Settings
) -> None:
    """`request.children`, which `BaseBackend.current_task_children` reads."""
    sent = app.send_task("overheard.parent")
    (end,) = eventually(lambda: [entry for entry in entries(client, settings)
                                 if entry["task_id"] == sent.id and entry["state"] == "SUCCESS"])  # fmt: skip
    assert [child[0][0] for child in end["children"]] == [end["result"]]


def test_a_pool_says_how_many_runs_it_has_room_for_and_what_it_was_handed(
    notes: Callable[..., list[dict[str, Any]]], app: Celery, pool: str, tmp_path: Path
) -> None:
    """`BasePool.limit`; prefork's `_pool._processes`, and `_pool._cache` with its jobs' `correlation_id`."""
    if pool == "solo":
        pytest.skip("while it runs a task it answers nothing")
    sent = app.send_task("overheard.wait", (str(tmp_path / "go"),))
    eventually(lambda: [note for note in notes(sent.id) if note["what"] == "on_accepted"])
    (answer,) = eventually(lambda: app.control.broadcast("handed_over", reply=True, timeout=5, limit=1))
    (tmp_path / "go").touch()
    assert answer["celery@w1"] == {"slots": 2, "jobs": [sent.id] if pool == "prefork" else []}


def test_a_broken_connection_closes_the_consumer_then_starts_it_anew_and_nothing_is_lost_or_done_twice(
    notes: Callable[..., list[dict[str, Any]]], app: Celery, client: Any, settings: Settings, pool: str, tmp_path: Path
) -> None:
    """`Consumer.on_close` drops what waits for its time, before `Claims.start` is called again and puts it back."""
    soon = datetime.now(UTC) + timedelta(seconds=4)
    waiting = app.send_task("tests.add", (1, 1), eta=soon)
    eventually(lambda: client.keys(f"{settings.key_prefix}claims:*"))
    running = None if pool == "solo" else app.send_task("overheard.wait", (str(tmp_path / "go"),))
    eventually(lambda: running is None or [note for note in notes(running.id) if note["what"] == "on_accepted"])
    app.control.broadcast("lose_connection", reply=True, timeout=5, limit=1)
    eventually(lambda: len([note for note in notes() if note["what"] == "attach"]) == 2)
    (tmp_path / "go").touch()
    expected = sorted(result.id for result in (waiting, running) if result)
    eventually(lambda: len(succeeded(client, settings)) == len(expected))
    assert [note["what"] for note in notes() if note["what"] in ("attach", "on_close")] == [
        "attach",
        "on_close",
        "attach",
    ]
    assert sorted(succeeded(client, settings)) == expected
    assert datetime.now(UTC) > soon
    assert [note["task_id"] for note in notes(waiting.id) if note["what"] == "on_accepted"] == [waiting.id]


def succeeded(client: Any, settings: Settings) -> list[str]:
    return [entry["task_id"] for entry in entries(client, settings) if entry["state"] == "SUCCESS"]
