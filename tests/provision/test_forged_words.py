"""What the words of a stolen credential are worth: it tells of tasks by their ids, and ids are no secret.

Redis is real, with the rights of howl.provision.permissions, and so is PostgreSQL. The credential `thief` was granted
the queue `mine`, `victim` the queue `theirs`, and both the queue `shared`.
"""

import asyncio
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select

from howl.broker.namespaces import Namespace
from howl.broker.scripts import load_all
from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.models import Artifact, Chord, RecordUsage, Task
from howl.outcomes import JOIN_ALL, ArtifactKept, ChordCreated, Entry, Outcome, PartsAdded, encode
from howl.provision.permissions import Grant
from howl.server.chords import chords
from howl.server.recorder.recorder import Recorder
from howl.server.supervision import end
from howl.submission import TaskRequest, cancel, submit
from tests.helpers.secured import ADMIN, SERVER, Secured
from tests.helpers.support import eventually

PREFIX = "w:"
AT = datetime.now(UTC).isoformat()
SECRET = "the victim's result"


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory(prefix="howl-words-", dir="/tmp") as folder:
        grants = [Grant("thief", ("mine", "shared")), Grant("victim", ("theirs", "shared"))]
        made = Secured(Path(folder), PREFIX, "w", grants)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def admin(secured: Secured) -> Iterator[Any]:
    """Redis as its owner sees it, empty."""
    with secured.client(ADMIN) as client:
        client.flushall()
        load_all(client)
        yield client


@pytest.fixture
def ours(secured: Secured, settings: Settings, admin: Any) -> Settings:
    """What `howl server` is told."""
    told = {"redis_url": secured.redis_url(SERVER), "ca_file": secured.ca, "key_prefix": PREFIX}
    return load_settings(database_url=settings.database(), home=settings.home, task_modules=("tests.tasks",), **told)


@pytest.fixture
def server(ours: Settings) -> Iterator[Celery]:
    """The server's Celery application."""
    made = create_app(ours)
    made.set_current()
    made.loader.import_default_modules()
    yield made
    made.close()


@pytest.fixture
def tell(secured: Secured, ours: Settings, server: Celery) -> Callable[..., None]:
    """Write entries as a credential's worker would, and have the server record them."""

    def _tell(user: str, *entries: Entry) -> None:
        with secured.client(user) as client:
            for entry in entries:
                client.xadd(Namespace(PREFIX, user).key("outcomes"), {"outcome": encode(entry)})
        _record_all(ours, server)

    return _tell


def _record_all(ours: Settings, server: Celery) -> None:
    """Have the server work until nothing is left for it to record, or to submit."""
    streams = [Namespace(PREFIX, user).key("outcomes") for user in ("default", "thief", "victim")]

    def nothing_is_left() -> bool:
        return not any(server.backend.redis.xlen(stream) for stream in streams)

    for _ in range(10):
        asyncio.run(_run_until(Recorder(ours, server), nothing_is_left))
        chords.wake_all(ours)  # as the keeper does: the recorder was stopped, maybe before it could
        chords.submit_due(ours, server)
        if nothing_is_left():
            return
    raise AssertionError("there is no end to it")


async def _run_until(recorder: Recorder, done: Callable[[], Any]) -> None:
    running = asyncio.create_task(recorder.run())
    try:
        await asyncio.to_thread(eventually, done)
    finally:
        await end([running])


def _end(task_id: str, **given: Any) -> Outcome:
    return Outcome(**({"task_id": task_id, "state": "SUCCESS", "at": AT, "result": SECRET} | given))


def _failed(task_id: str, **given: Any) -> Outcome:
    error = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": [SECRET]}
    return _end(task_id, state="FAILURE", result=error, **given)


def _chord(parts: list[str], body_id: str = "body", **options: Any) -> ChordCreated:
    group_id = str(uuid.uuid4())
    body = {"task": "tests.echo", "args": [], "kwargs": {}, "subtask_type": None, "immutable": False}
    body["options"] = {"task_id": body_id, "queue": "mine"} | options
    return ChordCreated(
        group_id=group_id, parts=parts, header=[[group_id, None], [[[part, None], None] for part in parts]], body=body
    )


@pytest.fixture
def row(ours: Settings) -> Callable[[str], Task | None]:
    def _row(task_id: str) -> Task | None:
        with postgres.session(ours.database()) as opened:
            return opened.get(Task, task_id)

    return _row


@pytest.fixture
def submitted(ours: Settings, server: Celery) -> Callable[[str], str]:
    """Submit a task to a queue; its id."""

    def _submit(queue: str) -> str:
        with postgres.session(ours.database()) as opened:
            return submit(TaskRequest(name="tests.noop", queue=queue), opened, server)

    return _submit


def _messages(admin: Any, queue: str) -> list[bytes]:
    return list(admin.lrange(f"{PREFIX}{queue}", 0, -1))


# --- what another's task ended as -------------------------------------------------------------------------------------

ENDS = {"a result": _end, "an error": _failed}


@pytest.mark.parametrize("options", [{}, {"headers": JOIN_ALL}], ids=["a body", "a body that joins all"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["submitted", "that nobody submitted"])
def test_a_forged_chord_learns_nothing_of_anothers_task(
    tell: Any, row: Any, admin: Any, submitted: Any, kind: str, end: str, options: dict[str, Any]
) -> None:
    task_id = submitted("theirs") if kind == "submitted" else "theirs-1"
    tell("victim", ENDS[end](task_id, queue="theirs"))
    tell("thief", _chord([task_id], **options))
    assert not _messages(admin, "mine")
    body = row("body")
    assert body.status == "failed"
    assert task_id in body.error_message
    assert SECRET not in f"{body.error}{body.error_message}{body.traceback}"


@pytest.mark.parametrize("when", ["before its end", "after its end"])
def test_to_call_anothers_task_ones_own_shows_nothing_of_its_end(tell: Any, row: Any, admin: Any, when: str) -> None:
    forged = _end("theirs-1", state="STARTED", result=None, queue="mine")
    real = _end("theirs-1", queue="theirs", name="real")
    for user, entry in [("thief", forged), ("victim", real)][:: 1 if when == "before its end" else -1]:
        tell(user, entry)
    tell("thief", _chord(["theirs-1"]))
    assert not _messages(admin, "mine")
    assert (row("theirs-1").queue, row("theirs-1").result) == ("theirs", SECRET)


def test_a_header_that_names_more_than_the_parts_shows_nothing(tell: Any, admin: Any, row: Any) -> None:
    tell("victim", _end("theirs-1", queue="theirs"))
    tell("thief", _end("mine-1", queue="mine"))
    nested = [["g", None], [[["mine-1", None], None], [["h", None], [[["theirs-1", None], None]]]]]
    for parts in (["mine-1"], ["mine-1", "theirs-1"]):
        forged = _chord(parts)
        tell("thief", ChordCreated(group_id=forged.group_id, parts=parts, header=nested, body=forged.body))
    assert not _messages(admin, "mine")
    assert SECRET not in str(row("body") and row("body").error)


def test_two_credentials_that_share_a_queue_share_its_chords(tell: Any, admin: Any, submitted: Any) -> None:
    known = submitted("shared")
    tell("thief", _chord([known, "shared-1", "mine-1"]), _end("mine-1", queue="mine"))
    tell("victim", _end(known, queue="shared"), _end("shared-1", queue="shared"))
    assert len(_messages(admin, "mine")) == 1
    tell("victim", _chord(["theirs-1", "shared-1"], body_id="body2", queue="theirs"), _end("theirs-1", queue="theirs"))
    assert len(_messages(admin, "theirs")) == 1


# --- what another's task is said to have ended as ---------------------------------------------------------------------


def test_the_end_of_a_task_that_was_submitted_to_another_queue_cannot_be_forged(
    tell: Any, row: Any, admin: Any, submitted: Any, ours: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    task_id = submitted("theirs")
    forged = [_end(task_id, queue="mine"), _end(task_id, state="STARTED"), _end(task_id, attempt=7)]
    tell("thief", *forged, _end("mine-1", queue="mine", result=1))
    assert (row(task_id).status, row(task_id).queue, row(task_id).result) == ("queued", "theirs", None)
    assert row("mine-1").result == 1
    # It is in flight still: the keeper would push it again.
    assert admin.hexists(f"{PREFIX}inflight", task_id)
    assert admin.llen(f"{PREFIX}unreadable") == 3
    assert "of Redis user thief set aside, which it may not tell: task " in caplog.text
    tell("victim", _end(task_id, queue="theirs"))
    assert (row(task_id).status, row(task_id).result) == ("succeeded", SECRET)


def test_a_file_of_a_task_that_was_submitted_to_another_queue_cannot_be_replaced(
    tell: Any, submitted: Any, ours: Settings
) -> None:
    task_id = submitted("theirs")

    def left(digit: str, attempt: int) -> ArtifactKept:
        return ArtifactKept(task_id=task_id, artifact_id=digit * 32, name="file", media_type="a/b", size=1,
                            sha256=digit * 64, at=AT, attempt=attempt)  # fmt: skip

    tell("victim", left("a", 1))
    tell("thief", left("b", 2))
    with postgres.session(ours.database()) as opened:
        assert opened.scalars(select(Artifact.artifact_id)).all() == ["a" * 32]


@pytest.mark.parametrize("end", ENDS)
def test_a_forged_chord_neither_ends_nor_replaces_a_task_whose_id_its_body_has(
    tell: Any, row: Any, admin: Any, submitted: Any, end: str
) -> None:
    task_id = submitted("theirs")
    admin.hdel(f"{PREFIX}inflight", task_id)  # as if Redis had lost it
    tell("thief", _chord(["mine-1"], body_id=task_id), ENDS[end]("mine-1", queue="mine"))
    assert row(task_id).status == "queued"
    assert not _messages(admin, "mine")
    assert not admin.hexists(f"{PREFIX}inflight", task_id)


def test_a_failing_chord_cancels_nobodys_tasks(tell: Any, row: Any, admin: Any, submitted: Any) -> None:
    """Celery revokes what is in a group that is such a chord's body."""
    task_id = submitted("theirs")
    member = {"task": "tests.echo", "args": [], "kwargs": {}, "options": {"task_id": task_id, "queue": "mine"}}
    member |= {"subtask_type": None, "immutable": False}
    forged = _chord(["mine-1"])
    body = {"task": "celery.group", "args": [], "kwargs": {"tasks": [member]}, "subtask_type": "group"}
    body |= {"options": {"task_id": "group-1"}, "immutable": False}
    tell("thief", ChordCreated(group_id="g", parts=forged.parts, header=forged.header, body=body),
         _failed("mine-1", queue="mine"))  # fmt: skip
    assert not admin.exists(f"{PREFIX}revoked")
    assert row(task_id).status == "queued"


def test_nobody_adds_to_a_chord_with_a_credential_of_its_own(tell: Any, row: Any, admin: Any) -> None:
    chord = _chord(["theirs-1"], queue="theirs")
    tell("victim", chord)
    tell("thief", PartsAdded(group_id=chord.group_id, task_id="theirs-1", parts=["never"]))
    tell("victim", _end("theirs-1", queue="theirs"))
    assert len(_messages(admin, "theirs")) == 1


def test_error_callbacks_of_a_failing_chord_go_only_where_its_worker_could_publish(
    tell: Any, row: Any, admin: Any
) -> None:
    callback = {"task": "tests.echo", "args": [], "kwargs": {}, "options": {"queue": "theirs"}, "subtask_type": None}
    tell("thief", _chord(["mine-1"], link_error=[callback, "no signature"]), _failed("mine-1", queue="theirs"))
    assert row("body").status == "failed"
    assert not _messages(admin, "theirs")
    (message,) = _messages(admin, "mine")
    assert json.loads(message)["headers"]["task"] == "howl.call_errback"


def test_a_chord_within_a_chord_has_no_more_rights_than_its_worker(
    tell: Any, admin: Any, ours: Settings, submitted: Any
) -> None:
    tell("victim", _end("theirs-1", queue="theirs"))
    inner = {"task": "tests.echo", "args": [], "kwargs": {}, "options": {"queue": "mine"}, "subtask_type": None}
    body = {"task": "celery.chord", "subtask_type": "chord", "args": [], "immutable": False,
            "kwargs": {"header": [inner | {"immutable": True}] * 2, "body": inner, "kwargs": {}},
            "options": {"task_id": "chord-1"}}  # fmt: skip
    forged = _chord(["mine-1"])
    tell("thief", ChordCreated(group_id="g", parts=forged.parts, header=forged.header, body=body),
         _end("mine-1", queue="mine"))  # fmt: skip
    with postgres.session(ours.database()) as opened:
        assert set(opened.scalars(select(Chord.redis_user))) == {"thief"}


def test_cancelling_a_task_cancels_no_parts_that_its_worker_may_not_tell_of(
    tell: Any, row: Any, admin: Any, submitted: Any, ours: Settings, server: Celery
) -> None:
    own, foreign = submitted("mine"), submitted("theirs")
    tell("thief", _end(own, state="STARTED", result=None), _chord([foreign], body_id=own))
    with postgres.session(ours.database()) as opened:
        cancel(own, opened, server)
    assert foreign.encode() not in [fields[b"task_id"] for _, fields in admin.xrange(f"{PREFIX}revoked")]


def test_a_chord_that_another_told_of_first_is_told_of_all_the_same(tell: Any, admin: Any) -> None:
    real = _chord(["theirs-1"], queue="theirs")
    tell("thief", ChordCreated(group_id=real.group_id, parts=["x"], header=real.header, body=real.body))
    tell("victim", real, _end("theirs-1", queue="theirs"))
    assert len(_messages(admin, "theirs")) == 1


@pytest.mark.parametrize("options", [{"queue": "theirs"}, {"queue": "new"}, {"exchange": "theirs",
                                     "routing_key": "theirs", "queue": "theirs"},
                                     {"queue": "mine", "exchange": "theirs", "routing_key": "theirs"},
                                     {"queue": None, "exchange": "", "routing_key": "theirs"}])  # fmt: skip
def test_nothing_remains_of_a_chord_that_is_refused(
    tell: Any, admin: Any, server: Celery, options: dict[str, Any]
) -> None:
    known = set(server.amqp.queues)
    tell("thief", _chord(["mine-1"], **options), _end("mine-1", queue="mine"))
    assert not _messages(admin, "theirs")
    written = {key for key in admin.scan_iter(count=1000) if b"_kombu" in key and b"mine" not in key}
    assert not written
    assert set(server.amqp.queues) == known


def test_a_credential_that_is_gone_holds_nobody_up(tell: Any, admin: Any, ours: Settings, server: Celery) -> None:
    with postgres.session(ours.database()) as opened:
        chords.record(opened, [(_chord(["old-1"]), "nobody")])
    tell("victim", _end("old-1", queue="theirs"), _chord(["theirs-1"], body_id="b2", queue="theirs"),
         _end("theirs-1", queue="theirs"))  # fmt: skip
    assert len(_messages(admin, "theirs")) == 1


# --- how much it may have recorded ------------------------------------------------------------------------------------


def test_one_credential_has_no_more_recorded_than_its_limit_and_holds_up_no_other(
    secured: Secured, ours: Settings, server: Celery, row: Any, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    limited = ours.model_copy(update={"record_limit": 1 << 20})
    flood = [f"flood-{number}" for number in range(60)]
    with secured.client("thief") as thief:
        for task_id in flood:
            thief.xadd(
                Namespace(PREFIX, "thief").key("outcomes"), {"outcome": encode(_end(task_id, result="x" * 50_000))}
            )

    def attacked() -> bool:
        eventually(lambda: "Redis user thief has had 1 MB recorded" in caplog.text)
        with secured.client("victim") as victim:
            victim.xadd(Namespace(PREFIX, "victim").key("outcomes"), {"outcome": encode(_end("theirs-1"))})
        return bool(eventually(lambda: row("theirs-1"), timeout=5))

    asyncio.run(_run_until(Recorder(limited, server), attacked))
    waiting = admin.xlen(Namespace(PREFIX, "thief").key("outcomes"))
    recorded = sum(row(task_id) is not None for task_id in flood)
    # Nothing is lost, and what is over the limit waits; a batch is begun below it.
    assert (waiting + recorded, waiting > 0) == (len(flood), True)
    with postgres.session(ours.database()) as opened:
        assert opened.get_one(RecordUsage, "thief").entries == recorded
        assert opened.get(RecordUsage, "victim") is not None
    # Another server, or this one started anew, opens no new budget; a higher limit lets the rest through.
    _record_all(ours, server)
    assert all(row(task_id) for task_id in flood)
    assert json.loads(json.dumps(row("flood-59").result)) == "x" * 50_000
