"""What workers tell of files they left becomes rows: each once, the newer in place of the older, garbage set aside."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.celery import create_app
from howl.config import Settings
from howl.errors import UnreadableOutcome
from howl.models import Artifact, TaskEvent
from howl.outcomes import ArtifactKept, decode, encode
from howl.server.recorder.outcome_streams import Received
from howl.server.recorder.recorder import Recorder
from howl.worker.results.outbox import PROGRESS, parcel

#: Long ago: no machine's clock may be before it, for what has yet to come is taken for the present.
NOW = datetime(2024, 1, 1, 12, 0, 0, tzinfo=UTC)


def told(number: int = 0, **given: Any) -> ArtifactKept:
    at = (NOW + timedelta(seconds=number)).isoformat()
    facts = {"artifact_id": f"{number:032x}", "name": "log.txt", "media_type": "text/plain", "size": number,
             "sha256": "0" * 64, "at": at}  # fmt: skip
    return ArtifactKept(task_id="task-1", **facts | given)  # type: ignore[arg-type]


@pytest.fixture
def record(settings: Settings) -> Any:
    """Record entries, each a second after the one before it."""
    recorder = Recorder(settings, create_app(settings))
    first = int(NOW.timestamp()) * 1000 + 60_000
    return lambda *entries: recorder.record(
        [Received(f"{first + 1000 * number}-0", entry) for number, entry in enumerate(entries)]
    )


def rows(session: Session) -> list[tuple[str, int, str]]:
    session.expire_all()
    return [(row.name, row.size, row.status) for row in session.scalars(select(Artifact).order_by(Artifact.name))]


def test_a_file_told_of_twice_is_one_row_and_one_event(record: Any, session: Session) -> None:
    record(told(1), told(2, name="other"))
    session.execute(Artifact.__table__.update().values(status="kept"))
    session.commit()
    record(told(1), told(2, name="other"))
    assert rows(session) == [("log.txt", 1, "kept"), ("other", 2, "kept")]
    assert [event.kind for event in session.scalars(select(TaskEvent))] == ["artifact", "artifact"]


def test_a_newer_file_takes_the_name_and_is_looked_for_anew(record: Any, session: Session) -> None:
    record(told(1))
    session.execute(Artifact.__table__.update().values(status="kept"))
    session.commit()
    record(told(2), told(3))
    assert rows(session) == [("log.txt", 3, "arriving")]


@pytest.mark.parametrize("together", [True, False])
def test_what_is_told_late_of_an_earlier_attempt_does_not_replace_the_later_ones(
    record: Any, session: Session, together: bool
) -> None:
    entries = [told(2, attempt=2), told(1, attempt=1)]
    for batch in [entries] if together else [[entry] for entry in entries]:
        record(*batch)
    assert rows(session) == [("log.txt", 2, "arriving")]


def test_a_task_that_was_queued_again_by_hand_begins_at_its_first_attempt_and_its_files_count(
    record: Any, session: Session
) -> None:
    record(told(1, attempt=3))
    record(told(2, attempt=1))
    assert rows(session) == [("log.txt", 2, "arriving")]


def test_a_row_goes_after_the_time_that_files_are_kept(record: Any, session: Session, settings: Settings) -> None:
    record(told(1))
    row = session.scalars(select(Artifact)).one()
    kept = (row.expires_at - row.created_at).total_seconds()
    assert settings.artifact_retention < kept < settings.artifact_retention + 120


def test_only_who_holds_a_message_may_tell_of_its_files() -> None:
    # The session drops progress of a message that it holds no more, and Redis refuses it from whoever lost it.
    entry = told()
    assert parcel(entry, encode(entry), "owner:1:1").kind == PROGRESS


def test_an_entry_is_read_as_it_was_written() -> None:
    entry = told(7, worker_id="w1", attempt=2)
    document = {"kind": "artifact", **vars(entry)}
    assert decode(document) == entry


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../../x"}, {"name": ""}, {"name": "a\x1b[2J"}, {"name": None}, {"artifact_id": "../x"},
        {"artifact_id": "0" * 31}, {"sha256": "g" * 64}, {"media_type": "text/html\r\nx"}, {"size": -1},
        {"size": True}, {"size": 2**63}, {"size": 1.5}, {"attempt": 0}, {"at": "2026-11-22"}, {"at": None},
        {"sha256": None}, {"task_id": ""},
        {"location": "elsewhere/x"},
    ],
)  # fmt: skip
def test_what_no_worker_of_ours_would_say_is_set_aside(wrong: dict[str, Any]) -> None:
    with pytest.raises(UnreadableOutcome):
        decode({"kind": "artifact", **vars(told()), **wrong})
