"""What a stolen credential can do to others over NATS: its subjects, its files, and what it has NATS say for it.

nats-server is real, with the accounts of howl.provision.nats: `thief` and `victim` are two workers' credentials.
"""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from howl.artifacts import store as objects
from howl.artifacts.store import PIECE, Flight
from howl.config import Settings, load_settings
from howl.connections.nats import Connection, inbox_prefix, receipt_fault
from howl.errors import ArtifactFailed, ArtifactRefused
from howl.provision.permissions import Grant
from howl.server.artifacts.retention import Curator
from howl.server_requests import ANSWER_TO, MOST, Asker, Piece, TooManyQuestions, Whole, answer_in
from howl.worker.task import uploads
from tests.helpers.desk import Desk
from tests.helpers.secured import SERVER, Secured
from tests.helpers.support import eventually

BUCKET, NAME, DIGEST = "t-artifacts", "a" * 32, objects.digest_of(bytes(32))
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory(prefix="howl-nats-", dir="/tmp") as folder:
        made = Secured(Path(folder), "t:", "t", [Grant("thief", ("mine",)), Grant("victim", ("theirs",))])
        try:
            made.start()
            yield made
        finally:
            made.stop()


def told(secured: Secured, user: str, **given: Any) -> Settings:
    return load_settings(nats_url=secured.nats_url(user), subject_prefix="t", **given)


@asynccontextmanager
async def connected(secured: Secured, user: str) -> AsyncIterator[Connection]:
    client = await Connection().open(told(secured, user), f"a test's {user}")
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
def desk(secured: Secured) -> Iterator[Desk]:
    """The server's part that takes files and questions, with its streams; four megabytes for each credential."""
    with Desk(told(secured, SERVER, artifact_room=8 * MEGABYTE, artifact_count=20)) as desk:
        asyncio.run(_as_server(secured, _begin))
        yield desk
    asyncio.run(_as_server(secured, _end))


async def _as_server(secured: Secured, act: Callable[[Any], Awaitable[Any]]) -> Any:
    async with connected(secured, SERVER) as client:
        return await act(client.jetstream())


async def _begin(stream: Any) -> None:
    await stream.add_stream(StreamConfig(name="t-events", subjects=["t.events.*"]))
    await stream.publish("t.events.victim", b"[]")


async def _end(stream: Any) -> None:
    for name in ("t-events", f"OBJ_{BUCKET}", "t-questions"):
        await stream.delete_stream(name)


async def _subjects(stream: Any) -> dict[str, int]:
    """All that NATS keeps, by subject."""
    found: dict[str, int] = {}
    for name in ("t-events", f"OBJ_{BUCKET}", "t-questions"):
        found |= (await stream.stream_info(name, subjects_filter=">")).state.subjects or {}
    return found


def kept(secured: Secured) -> dict[str, int]:
    return dict(asyncio.run(_as_server(secured, _subjects)))


# --- what NATS says for a stranger ------------------------------------------------------------------------------------

#: By each of these headers JetStream answers something else: a receipt, or a refusal, also in the sender's words.
WORDS: tuple[dict[str, str] | None, ...] = (
    None, {"Nats-Expected-Last-Sequence": "999999"}, {"Nats-Expected-Last-Msg-Id": '"},"stream":"t-events","seq":7}'},
    {"Nats-Expected-Stream": "other"}, {"Nats-Expected-Last-Subject-Sequence": "77"}, {"Nats-Rollup": "all"},
    {"Nats-Msg-Id": "x"}, {"Nats-TTL": "junk"}, {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"},
    {"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": "t.events.victim"},
)  # fmt: skip


@pytest.mark.parametrize("kind", ["events", "leave", "upload"])
def test_whatever_nats_answers_a_stranger_reaches_nobody_else(secured: Secured, desk: Desk, kind: str) -> None:
    """Its reply subject may be any: another's inbox, the server's, a stream, JetStream's API, what confirms events."""
    elsewhere = (
        "t.inbox.victim.x", "t.inbox.server.x", "_INBOX.x", "t.events.victim", "t.leave.victim", "t.upload.victim",
        f"$O.{BUCKET}.C.victim.{NAME}", f"$O.{BUCKET}.M.x", f"$O.{BUCKET}.C.{secrets.token_hex(1000)}",
        "$JS.API.STREAM.PURGE.t-events", "$JS.API.STREAM.DELETE.t-events", "$JS.API.CONSUMER.MSG.NEXT.t-events.bridge",
        "$JS.ACK.t-events.bridge.1.1.1.1.0", "t.upload-given", "t.leave-given", "$SYS.REQ.SERVER.PING",
    )  # fmt: skip

    async def attack() -> list[Any]:
        heard: list[Any] = []

        async def hear(message: Any) -> None:
            if message.subject in elsewhere:  # and not where the server speaks itself
                heard.append((message.subject, message.data))

        async with (
            connected(secured, "thief") as thief, connected(secured, "victim") as victim,
            connected(secured, SERVER) as server,
        ):  # fmt: skip
            await victim.subscribe("t.inbox.victim.>", cb=hear)
            for subject in ("t.inbox.server.>", "_INBOX.>", "t.events.victim", "t.*.victim", "$O.>", "$JS.>"):
                await server.subscribe(subject, cb=hear)
            await asyncio.gather(victim.flush(), server.flush())
            for reply in elsewhere:
                for headers in WORDS:
                    await thief.publish(f"t.{kind}.thief", b"[]", reply, headers)
                    # What NATS's tracing tells goes where a header says.
                    await thief.publish(f"t.{kind}.thief", b"[]", headers={"Nats-Trace-Dest": reply})
                    with suppress(NatsError):
                        await thief.flush(5)
            await asyncio.sleep(0.3)
            await asyncio.gather(victim.flush(), server.flush())
        return heard

    assert asyncio.run(attack()) == []
    others = {subject: number for subject, number in kept(secured).items() if not subject.endswith(".thief")}
    assert others == {"t.events.victim": 1}


def test_a_refusal_that_a_stranger_provokes_ends_no_neighbours_upload(secured: Secured, desk: Desk) -> None:
    async def attack(over: asyncio.Event) -> None:
        async with connected(secured, "thief") as thief:
            while not over.is_set():
                for subject in ("t.inbox.victim.x", f"$O.{BUCKET}.C.victim.{NAME}"):
                    await thief.publish("t.events.thief", b"[]", subject, {"Nats-Expected-Last-Sequence": "99"})
                await asyncio.sleep(0)

    async def upload() -> int:
        over = asyncio.Event()
        attacking = asyncio.create_task(attack(over))
        try:
            return await asyncio.to_thread(leave, secured, "victim", 2 * MEGABYTE)
        finally:
            over.set()
            await attacking

    assert asyncio.run(upload()) == 2 * MEGABYTE


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"{}", b'{"stream":"other","seq":1}', b'{"stream":"t-events"}', b'{"stream":"t-events","seq":0}',
        b'{"stream":"t-events","seq":"x"}', b'{"error":{"code":400,"description":"words"}}', b"[" * 5000, b"\xff",
    ],
)  # fmt: skip
def test_nothing_but_the_streams_own_receipt_counts_as_one(answer: bytes) -> None:
    def message(data: bytes) -> Any:
        return nats.aio.msg.Msg(_client=None, data=data)  # type: ignore[arg-type]

    assert receipt_fault(message(answer), "t-events") is not None
    assert receipt_fault(message(b'{"stream":"t-events","seq":1}'), "t-events") is None


# --- files ------------------------------------------------------------------------------------------------------------


def leave(secured: Secured, user: str, size: int) -> int:
    """Leave a file as a worker's task does; its size as it is kept."""
    uploader = uploads.Uploader(told(secured, user))
    try:
        return uploader.upload("x", lambda: BytesIO(bytes(size)).read, size).size or 0
    finally:
        asyncio.run_coroutine_threadsafe(_close(uploader), uploader.loop).result(10)
        _stop(uploader)


def _stop(uploader: uploads.Uploader) -> None:
    uploader.loop.call_soon_threadsafe(uploader.loop.stop)
    eventually(lambda: not uploader.loop.is_running())
    uploader.loop.close()


async def _close(uploader: uploads.Uploader) -> None:
    if uploader._closing is not None:
        uploader._closing.cancel()
    if uploader._connection is not None:
        await uploader._connection.close()


def test_a_file_is_read_by_natss_own_client(secured: Secured, desk: Desk) -> None:
    assert leave(secured, "victim", 3_000_001) == 3_000_001

    async def read(stream: Any) -> Any:
        store = await stream.object_store(BUCKET)
        (info,) = await store.list()
        return info.description, (await store.get(info.name)).data

    assert asyncio.run(_as_server(secured, read)) == ("x", bytes(3_000_001))


async def _places(secured: Secured, act: Callable[[Connection, Asker, Flight], Awaitable[Any]]) -> Any:
    async with connected(secured, "thief") as thief:
        flight = Flight(thief)
        return await act(thief, Asker(flight, told(secured, "thief")), flight)


def piece(number: int = 1, size: int = 1, name: str = NAME) -> bytes:
    return Piece(artifact_id=name, size=size, pieces=number).model_dump_json().encode()


def test_a_place_takes_one_piece_from_one_connection_and_nobody_elses(secured: Secured, desk: Desk) -> None:
    async def attack(thief: Connection, asker: Asker, _: Flight) -> None:
        answer = await asyncio.wait_for(answer_in(await asker.ask("upload", piece())), 10)
        async with connected(secured, "thief") as second, connected(secured, "victim") as victim:
            for client in (victim, thief, second, thief, second):
                await client.publish(answer.reply, b"piece", f"{inbox_prefix(told(secured, 'thief'))}.x")
                with suppress(NatsError):
                    await client.flush(5)

    asyncio.run(_places(secured, attack))
    assert kept(secured)[f"$O.{BUCKET}.C.thief.{NAME}"] == 1


def test_a_stranger_has_as_many_subjects_files_and_bytes_as_its_share(secured: Secured, desk: Desk) -> None:
    async def attack(thief: Connection, asker: Asker, _: Flight) -> list[bytes]:
        refusals = []
        for number in range(60):
            answers = await asker.ask("upload", piece(1 + number % 3, size=3 * PIECE, name=f"{number:032x}"))
            for _ in range(1 + number % 3):
                answer = await asyncio.wait_for(answer_in(answers), 10)
                if not answer.reply:
                    refusals.append(answer.data)
                    break
                await thief.publish(answer.reply, bytes(PIECE))
        return refusals

    assert asyncio.run(_places(secured, attack))
    mine = {subject: number for subject, number in kept(secured).items() if ".C.thief." in subject}
    assert sum(mine.values()) * PIECE <= 4 * MEGABYTE
    assert len(mine) <= 10
    assert leave(secured, "victim", 2 * MEGABYTE) == 2 * MEGABYTE


def test_a_credential_has_so_many_files_and_no_more(secured: Secured, desk: Desk) -> None:
    for _ in range(10):
        leave(secured, "thief", 10)
    with pytest.raises(ArtifactRefused, match="it has 10 files"):
        leave(secured, "thief", 10)
    assert leave(secured, "victim", 10) == 10


def test_after_a_restart_the_server_counts_what_is_in_the_bucket(
    secured: Secured, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        leave(secured, "thief", MEGABYTE // 2)
    curator = Curator(desk.settings)
    monkeypatch.setattr(curator, "_ask", lambda question: dict.fromkeys(question.keywords.get("names", ())))
    asyncio.run(_as_server(secured, curator.count))
    assert [(held.size, held.is_whole) for held in curator.room.files["thief"].values()] == [(PIECE, True)] * 3


@pytest.mark.parametrize("fault", ["size", "pieces", "another's", "again"])
def test_a_file_is_described_only_as_it_is_and_once(secured: Secured, desk: Desk, fault: str) -> None:
    async def attack(thief: Connection, asker: Asker, _: Flight) -> bytes:
        answer = await asyncio.wait_for(answer_in(await asker.ask("upload", piece())), 10)
        await thief.request(answer.reply, b"12345", timeout=5)
        whole = {"artifact_id": NAME, "name": "x", "size": 5, "pieces": 1, "digest": DIGEST}
        wrong: dict[str, dict[str, Any]] = {
            "size": {"size": 4}, "pieces": {"pieces": 2}, "another's": {"artifact_id": "b" * 32},
            "again": {"digest": objects.digest_of(b"x" * 32)},
        }  # fmt: skip
        if fault == "again":
            assert await _concluded(asker, whole) == b"kept"
            assert await _concluded(asker, whole) == b"kept"
        return await _concluded(asker, whole | wrong[fault])

    assert b'"is_final":false' in asyncio.run(_places(secured, attack))


async def _concluded(asker: Asker, whole: dict[str, Any]) -> bytes:
    answers = await asker.ask("upload", Whole(**whole).model_dump_json().encode())
    return (await asyncio.wait_for(answer_in(answers), 10)).data


@pytest.mark.parametrize(
    "question",
    [b"", b"[]", b"\xff", b"[" * 5000, b'{"artifact_id":"x","size":1,"pieces":1}', piece().replace(b"aaaa", b"$O.>")],
)
def test_a_question_that_makes_no_sense_stops_nobody(secured: Secured, desk: Desk, question: bytes) -> None:
    async def attack(_: Connection, asker: Asker, flight: Flight) -> None:
        await asker.ask("upload", question)
        await flight.client.flush(5)

    asyncio.run(_places(secured, attack))
    assert leave(secured, "victim", 10) == 10


def test_who_asks_without_end_is_refused_by_nats_and_in_nobodys_way(secured: Secured, desk: Desk) -> None:
    """Nobody reads questions for leave here: they stay."""

    async def attack(_: Connection, asker: Asker, __: Flight) -> int:
        refused = 0
        asked = [await asker.ask("leave", b"{}") for _ in range(MOST + 20)]
        for answers in asked:
            with suppress(TimeoutError):
                try:
                    await asyncio.wait_for(answer_in(answers), 0.05)
                except TooManyQuestions:
                    refused += 1
        return refused

    assert asyncio.run(_places(secured, attack)) == 20
    assert kept(secured)["t.leave.thief"] == MOST
    assert leave(secured, "victim", 10) == 10


@pytest.mark.parametrize("address", ["", "x", "a.b", "victim.>", "a" * 65 + ".1", "../victim.1", "x.1\r\nPUB"])
def test_an_answer_goes_below_the_askers_own_inbox(secured: Secured, desk: Desk, address: str) -> None:
    async def attack() -> list[Any]:
        heard: list[Any] = []

        async def hear(message: Any) -> None:
            heard.append(message.subject)

        async with connected(secured, "thief") as thief, connected(secured, SERVER) as server:
            await server.subscribe("t.inbox.>", cb=hear)
            await server.flush(5)
            with suppress(NatsError, ValueError):
                await thief.publish("t.upload.thief", piece(), headers={ANSWER_TO: address})
            await thief.publish("t.upload.thief", piece(name="c" * 32), headers={ANSWER_TO: "token.1"})
            await thief.flush(5)
            for _ in range(100):
                if "t.inbox.thief.token.1" in heard:
                    break
                await asyncio.sleep(0.05)
        return heard

    assert [subject for subject in asyncio.run(attack()) if ".thief." in subject] == ["t.inbox.thief.token.1"]


def test_no_header_of_a_strangers_deletes_a_file(secured: Secured, desk: Desk) -> None:
    leave(secured, "victim", 10)
    before = kept(secured)

    async def attack(thief: Connection, asker: Asker, _: Flight) -> None:
        for word in ("all", "sub"):
            answer = await asyncio.wait_for(answer_in(await asker.ask("upload", piece(name=secrets.token_hex(16)))), 10)
            await thief.publish(answer.reply, b"", headers={"Nats-Rollup": word})
        await thief.flush(5)

    asyncio.run(_places(secured, attack))
    assert kept(secured) == before


def test_a_full_bucket_refuses_what_is_new_and_keeps_what_is_there(secured: Secured, desk: Desk) -> None:
    leave(secured, "victim", MEGABYTE)
    with pytest.raises(ArtifactRefused, match="room for files is full"):
        leave(secured, "thief", 20 * MEGABYTE)
    assert leave(secured, "thief", MEGABYTE) == MEGABYTE

    async def sizes(stream: Any) -> list[int]:
        return [info.size for info in await (await stream.object_store(BUCKET)).list()]

    assert asyncio.run(_as_server(secured, sizes)) == [MEGABYTE, MEGABYTE]


def test_a_file_that_grows_while_it_is_read_is_refused(secured: Secured, desk: Desk) -> None:
    uploader = uploads.Uploader(told(secured, "victim"))
    with pytest.raises(ArtifactFailed, match="grew while it was read"):
        uploader.upload("x", lambda: BytesIO(bytes(3 * PIECE)).read, PIECE)
    asyncio.run_coroutine_threadsafe(_close(uploader), uploader.loop).result(10)
    _stop(uploader)


def test_strays_of_any_name_are_swept(secured: Secured, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_file = leave(secured, "victim", 10)

    async def scatter(stream: Any) -> None:
        for subject in ("C.x", "C.thief.x", "M.x", "M.eHg=", "C.a.b.c.d", f"C.thief.{NAME}", "C.thief.AAAA"):
            await stream.publish(f"$O.{BUCKET}.{subject}", b"")

    asyncio.run(_as_server(secured, scatter))
    curator = desk.curator
    (known,) = curator.room.files["victim"]
    monkeypatch.setattr(curator, "_ask", lambda _: {known: kept_file})
    asyncio.run(_as_server(secured, lambda stream: curator.sweep(stream, age=-1)))
    left = [subject for subject in kept(secured) if subject.startswith("$O.")]
    assert sorted(left) == sorted([f"$O.{BUCKET}.C.victim.{known}", objects.meta_subject(BUCKET, known)])


def test_more_strays_than_one_sweep_deletes_and_one_list_names_go_all_the_same(
    secured: Secured, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("howl.server.artifacts.retention.AT_ONCE", 10)

    async def scatter(stream: Any) -> None:
        for number in range(25):
            await stream.publish(f"$O.{BUCKET}.C.thief.{number:032x}", b"")

    asyncio.run(_as_server(secured, scatter))
    monkeypatch.setattr(desk.curator, "_ask", lambda _: {})

    async def sweep(stream: Any) -> list[bool]:
        return [await desk.curator.sweep(stream, age=-1) for _ in range(3)]

    assert asyncio.run(_as_server(secured, sweep)) == [False, False, True]
    assert [subject for subject in kept(secured) if subject.startswith("$O.")] == []
