"""Workers seen from the server: who is there, who left, who fell silent, and who only seems so."""

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import nats
import pytest
from nats.js.errors import NoStreamResponseError
from sqlalchemy import select, text

from howl.connections import postgres
from howl.models import TaskEvent
from howl.server.bridge import event_stream, presence
from howl.server.bridge.bridge import Bridge
from howl.server.bridge.presence import Described, Sighting
from howl.server.recorder.quota import Budget
from tests.helpers import wire
from tests.helpers.support import PATIENCE, eventually, taken_away


def test_a_worker_registers_with_all_it_says_of_itself_and_goes_offline_when_it_ends(
    server, start_worker, worker_row, settings
):
    worker = start_worker("w1", "--concurrency", "2", "--tags", "gpu,big", "--queues", "celery,fast", "--runtime", "5m",
                          "--origin", "local")  # fmt: skip
    row = eventually(lambda: worker_row("w1"))
    assert (row.status, row.tags, row.queues) == ("active", ["gpu", "big"], ["celery", "fast"])
    assert (row.origin, row.concurrency, row.manager_host) == ("local", 2, "127.0.0.1")
    assert timedelta(minutes=4) < row.deadline_at - datetime.now(UTC) < timedelta(minutes=5)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    row = eventually(lambda: (seen := worker_row("w1")).status == "offline" and seen)
    assert row.offline_at >= row.registered_at


def test_heartbeats_go_on_while_a_worker_lives(server, start_worker, worker_row):
    start_worker("w1")
    first = eventually(lambda: worker_row("w1")).last_heartbeat_at
    eventually(lambda: worker_row("w1").last_heartbeat_at > first)


def test_a_silent_worker_is_lost_and_active_again_when_it_speaks(server, start_worker, worker_row):
    worker = start_worker("w1")
    eventually(lambda: worker_row("w1"))
    worker.signal(signal.SIGSTOP)
    eventually(lambda: worker_row("w1").status == "lost")
    worker.signal(signal.SIGCONT)
    eventually(lambda: worker_row("w1").status == "active")


def test_a_killed_worker_is_lost_and_its_successor_of_the_same_name_is_active(server, start_worker, worker_row):
    worker = start_worker("w1")
    first = eventually(lambda: worker_row("w1")).boot_id
    worker.signal(signal.SIGKILL)
    eventually(lambda: worker_row("w1").status == "lost")
    start_worker("w1")
    row = eventually(lambda: (seen := worker_row("w1")).status == "active" and seen)
    assert row.boot_id != first


def test_the_two_statements_of_the_manual_work_as_they_stand_and_such_a_row_stays_as_written(
    server, start_worker, worker_row, settings
):
    with postgres.session(settings.database()) as session:
        session.execute(
            text(
                "INSERT INTO workers (worker_id, manager_host, status) VALUES ('github-worker-1', 'my-host', 'active');"
            )
        )
    worker = start_worker("w1")
    eventually(lambda: worker_row("w1"))
    worker.signal(signal.SIGKILL)
    eventually(lambda: worker_row("w1").status == "lost")
    with postgres.session(settings.database()) as session:
        asked = text("SELECT worker_id, manager_host, status, tags FROM workers WHERE status = 'active';")
        assert [tuple(row) for row in session.execute(asked)] == [("github-worker-1", "my-host", "active", [])]


def test_silence_does_not_count_while_nats_is_away(server, start_worker, worker_row, stack, settings):
    start_worker("w1")
    eventually(lambda: worker_row("w1"))
    with taken_away(stack.nats):
        silent = eventually(lambda: silent_for(2 * settings.lost_after, worker_row("w1")))
        assert silent.status == "active"
    eventually(lambda: worker_row("w1").last_heartbeat_at > silent.last_heartbeat_at)
    assert worker_row("w1").status == "active"


def silent_for(seconds, row):
    """The row, if the worker's last word is so old."""
    return row if datetime.now(UTC) - row.last_heartbeat_at > timedelta(seconds=seconds) else None


GARBAGE = {
    "no JSON": b"\xff\xfe{",
    "nested too deeply": b"[" * 5000,
    "no object": b"[1, 2]",
    "no worker": b'{"type": "worker-heartbeat"}',
    "wrong types": b'{"type": "worker-online", "worker": {"worker_id": 7, "boot_id": [], "status": "king"}}',
    "a name of many lines": json.dumps(
        {
            "type": "worker-online",
            "worker": {"worker_id": "w", "boot_id": "b", "status": "active", "run": {"evil\nevil " * 10_000: 5}},
        }
    ).encode(),
    "huge": json.dumps({"type": "worker-online", "worker": {"worker_id": "x" * 500_000}}).encode(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_ignored_with_one_line_and_stops_nothing(kind, server, start_worker, worker_row, settings):
    asyncio.run(_publish(settings, f"{settings.subject_prefix}.events.evil", GARBAGE[kind]))
    line = eventually(lambda: [line for line in server.output.splitlines() if "ignored" in line])
    assert len(line) == 1
    assert len(line[0]) < 500
    start_worker("w1")
    assert eventually(lambda: worker_row("w1")).status == "active"


def test_nul_characters_of_a_worker_are_replaced(server, worker_row, settings):
    described = {"worker_id": "w9", "boot_id": "b", "status": "active", "hostname": "a\x00b"}
    event = json.dumps({"type": "worker-online", "worker": described}).encode()
    asyncio.run(_publish(settings, f"{settings.subject_prefix}.events.crew", event))
    assert eventually(lambda: worker_row("w9")).hostname == "a\ufffdb"


async def _publish(settings, subject: str, data: bytes) -> None:
    client = await nats.connect(settings.nats())
    try:
        await _until_stored(client.jetstream(), subject, data)
    finally:
        await client.close()


async def _until_stored(stream, subject: str, data: bytes) -> None:
    """The bridge makes its stream a moment after the server says that it is up."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await stream.publish(subject, data, timeout=10)
        except NoStreamResponseError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        else:
            return


def test_a_late_word_of_an_earlier_life_changes_nothing(settings, worker_row):
    now = datetime.now(UTC)
    life = {"worker_id": "w1", "boot_id": "second", "status": "active"}

    def seen(seconds: float, **given) -> None:
        with postgres.session(settings.database()) as session:
            sighting = Sighting(Described(**life | given), now + timedelta(seconds=seconds), {}, "crew")
            presence.record(session, [sighting], Budget(settings))

    seen(0)
    seen(-5, boot_id="first", status="offline")
    assert worker_row("w1").status == "active"
    seen(1, status="offline")
    seen(2)
    assert worker_row("w1").status == "offline"


def test_no_other_credential_takes_the_name_of_a_worker_that_is_there(settings, worker_row):
    now = datetime.now(UTC)

    def seen(seconds: float, credential: str, **given) -> None:
        described = Described(**{"worker_id": "w1", "boot_id": credential, "status": "active"} | given)
        with postgres.session(settings.database()) as session:
            sighting = Sighting(described, now + timedelta(seconds=seconds), {}, credential)
            presence.record(session, [sighting], Budget(settings))

    seen(0, "crew")
    seen(1, "thief", status="offline")
    seen(2, "thief", hostname="elsewhere")
    assert (worker_row("w1").status, worker_row("w1").hostname, worker_row("w1").credential) == ("active", None, "crew")
    seen(3, "crew", status="offline")
    seen(4, "thief")
    assert (worker_row("w1").status, worker_row("w1").credential) == ("active", "thief")


def test_what_nats_was_given_twice_is_recorded_once(settings, session):
    bridge = Bridge(settings)
    received = wire.task("received", "task-1")
    for sequence in (1, 2):
        bridge.take([wire.letter(settings, received, sequence=sequence, message_id="abc.7")])
    bridge.take([wire.letter(settings, received, sequence=3, message_id="abc.8")])
    assert len(session.scalars(select(TaskEvent)).all()) == 2
    bridge.redis.close()


def test_a_silent_worker_is_lost_although_others_never_stop_talking(server, worker_row, settings):
    asyncio.run(_until_lost(settings, worker_row))


async def _until_lost(settings, worker_row) -> None:
    """One worker speaks once, another thirty times a second, also while this test looks what became of them."""
    client = await nats.connect(settings.nats())
    try:
        await _until_stored(client.jetstream(), *_heartbeat(settings, "quiet"))
        talking = asyncio.create_task(_talk(client, settings))
        for worker_id, status in (("quiet", "lost"), ("talkative", "active")):
            await asyncio.to_thread(_becomes, status, lambda name=worker_id: worker_row(name))
        talking.cancel()
    finally:
        await client.close()


def _becomes(status: str, look) -> None:
    eventually(lambda: (row := look()) and row.status == status)


async def _talk(client, settings) -> None:
    while True:
        await client.publish(*_heartbeat(settings, "talkative"))
        await asyncio.sleep(0.03)


def _heartbeat(settings, worker_id: str) -> tuple[str, bytes]:
    event = {"type": "worker-heartbeat", "worker": {"worker_id": worker_id, "boot_id": "b", "status": "active"}}
    return f"{settings.subject_prefix}.events.crew", json.dumps(event).encode()


def test_silence_does_not_count_while_nats_hangs(server, start_worker, worker_row, stack, settings):
    start_worker("w1")
    eventually(lambda: worker_row("w1"))
    os.kill(stack.nats.pid, signal.SIGSTOP)
    try:
        silent = eventually(lambda: silent_for(2 * settings.lost_after, worker_row("w1")))
        assert silent.status == "active"
    finally:
        os.kill(stack.nats.pid, signal.SIGCONT)
    eventually(lambda: worker_row("w1").last_heartbeat_at > silent.last_heartbeat_at)


def test_a_nats_that_stands_still_for_a_while_forgets_no_event(settings, stack, monkeypatch):
    """Only of one that answers is it true that it takes no more: then its stream is made anew."""
    monkeypatch.setattr(event_stream, "KEEP_TIMEOUT", 0.5)

    async def stand_still() -> str | None:
        async with asyncio.timeout(PATIENCE):
            client = await nats.connect(settings.nats())
            stream = event_stream.EventStream(client, settings.subject_prefix)
            await stream.open()
            await asyncio.to_thread(wire.publish, settings, [wire.worker("heartbeat")])
            os.kill(stack.nats.pid, signal.SIGSTOP)
            asking = asyncio.create_task(stream.require_keeping())
            await asyncio.sleep(1)
            os.kill(stack.nats.pid, signal.SIGCONT)
            await asking
            kept = await client.jetstream().get_msg(stream.name, 1)
            await client.close()
        return kept.subject

    try:
        assert str(asyncio.run(stand_still())).endswith(f".events.{wire.CREDENTIAL}")
    finally:
        os.kill(stack.nats.pid, signal.SIGCONT)


def test_what_waits_to_be_read_is_no_silence(settings, worker_row, caplog):
    """PostgreSQL, or a machine that slept, may keep the bridge from reading for longer than makes a worker lost."""
    bridge = Bridge(settings.model_copy(update={"lost_after": 0.5}))
    read = []

    def take(letters) -> None:
        Bridge.take(bridge, letters)
        read.extend(event for each in letters for event in json.loads(each.data))
        if len(read) == 2:
            raise Read
        if len(read) == 1:  # the next word comes so late that only it shows that the worker is there
            time.sleep(1)
            wire.publish(settings, [wire.worker("heartbeat")])

    async def listen() -> None:
        await asyncio.gather(bridge.run(), asyncio.to_thread(wire.publish, settings, [wire.worker("heartbeat")]))

    bridge.take = take
    with pytest.raises(Read):
        asyncio.run(listen())
    assert worker_row("w1").status == "active"
    assert [record.getMessage() for record in caplog.records] == []


class Read(Exception):
    """Both words of the worker are."""
