"""A run asks for leave over NATS, with a worker's credential, and `howl server` answers."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import nats
import pytest
from sqlalchemy import func, select

from howl import db
from howl.burst.leave import LeaveRequest, ask, this_run
from howl.config import Settings
from howl.errors import InvalidRequest, ServerUnavailable
from howl.models import Burst
from howl.server.leave import A_MINUTE, Porter
from tests.support import Process

RUN = {"GITHUB_REPOSITORY": "owner/name", "GITHUB_RUN_ID": "123", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_ACTIONS": "true",
       "GITHUB_ACTOR": "octocat", "GITHUB_EVENT_NAME": "push"}  # fmt: skip


def question(**columns: Any) -> LeaveRequest:
    return LeaveRequest(**{"repository": "owner/name", "run_id": "123", "workers": 2, "runtime": 600.0} | columns)


def rows(settings: Settings) -> int:
    with db.session(settings.database()) as session:
        return session.scalar(select(func.count()).select_from(Burst)) or 0


def howl_leave(start: Callable[..., Process], env: dict[str, str], *words: str) -> tuple[int, str]:
    process = start("burst", "leave", *words, env=env | RUN)
    return process.wait(), process.output


def test_a_run_that_knows_no_database_gets_its_matrix(
    start: Callable[..., Process], server: Process, worker_env: dict[str, str], settings: Settings
) -> None:
    status, output = howl_leave(start, worker_env, "--workers", "2", "--runtime", "10m", "--tags", "a,b", "--json")
    answer = json.loads(output)
    assert (status, answer["granted"], answer["runtime_minutes"]) == (0, True, 10)
    assert answer["matrix"] == [{"index": 1, "name": "worker-123-1-1"}, {"index": 2, "name": "worker-123-1-2"}]
    with db.session(settings.database()) as session:
        (row,) = session.scalars(select(Burst)).all()
    assert (row.burst_id, row.requested_by) == (answer["burst_id"], "github:push by octocat")
    assert (row.minutes_planned, row.request["tags"], row.run["run_id"]) == (20, ["a", "b"], "123")


def test_a_refusal_is_an_empty_matrix_for_programs_and_an_error_for_people(
    start: Callable[..., Process], server: Process, worker_env: dict[str, str]
) -> None:
    asked = ("--workers", "9", "--runtime", "5h")
    status, output = howl_leave(start, worker_env, *asked, "--json")
    answer = json.loads(output)
    assert (status, answer["granted"], answer["matrix"]) == (0, False, [])
    assert "9 workers x 300 min = 2,700 minutes" in answer["reason"]
    status, output = howl_leave(start, worker_env, *asked)
    assert status == 1
    assert answer["reason"] in output


def test_a_run_that_asks_again_gets_the_same_answer(server: Process, settings: Settings) -> None:
    first = ask(question(), settings)
    assert ask(question(workers=7), settings) == first
    assert rows(settings) == 1


def test_without_a_server_it_is_said_who_does_not_answer(settings: Settings) -> None:
    with pytest.raises(ServerUnavailable, match="No `howl server` listens"):
        ask(question(), settings)


def test_without_nats_it_is_said_what_cannot_be_used(settings: Settings) -> None:
    with pytest.raises(ServerUnavailable, match="NATS cannot be used"):
        ask(question(), settings.model_copy(update={"nats_url": "nats://127.0.0.1:1"}))


def test_a_server_without_its_database_says_to_try_again(settings: Settings) -> None:
    porter = Porter(settings.model_copy(update={"database_url": "postgresql://howl:secret@127.0.0.1:1/none"}))
    answer = porter.decide(question().model_dump_json().encode())
    assert "try again" in (answer.failed or "")
    assert "127.0.0.1" not in (answer.failed or "")


@pytest.mark.parametrize(
    "asked",
    [b"", b"[]", b"{}", b"\xff", b'{"run_id": 3}', question().model_dump_json().replace("123", "1;2").encode(),
     question().model_dump_json().replace('"tags":[]', '"tags":["a\\u0000"]').encode(),
     question().model_dump_json().replace('"tags":[]', '"tags":["\\ud800"]').encode(),
     question().model_dump_json().replace('"workers":2', '"workers":2e99').encode(), b"[" * 10_000],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_answered_and_not_recorded(settings: Settings, asked: bytes) -> None:
    assert "cannot read" in (Porter(settings).decide(asked).failed or "")
    assert rows(settings) == 0


def test_who_asks_without_end_is_put_off_and_fills_no_table(settings: Settings) -> None:
    porter = Porter(settings)
    answers = [porter.decide(question(run_id=str(run)).model_dump_json().encode()) for run in range(A_MINUTE + 5)]
    assert ["at once" in (answer.failed or "") for answer in answers] == [False] * A_MINUTE + [True] * 5
    assert rows(settings) == A_MINUTE


def test_a_header_that_nobody_can_read_does_not_end_the_answers(server: Process, settings: Settings) -> None:
    assert ask(question(), settings).granted
    asyncio.run(_with_a_bad_header(settings))
    assert ask(question(run_id="124"), settings).granted


async def _with_a_bad_header(settings: Settings) -> None:
    client = await nats.connect(settings.nats())
    subject = f"{settings.subject_prefix}.leave".encode()
    await client._send_command(b"HPUB %s inbox 7 9\r\ngarbage{}\r\n" % subject)
    await client.flush()
    await client.close()


def test_an_answer_goes_to_no_subject_but_an_inbox(server: Process, settings: Settings) -> None:
    assert ask(question(), settings).granted, "without anybody who hears questions, NATS itself answers, anywhere"
    heard = asyncio.run(_told_to_answer(settings))
    assert heard == {"inbox": 1, "elsewhere": 0}


async def _told_to_answer(settings: Settings) -> dict[str, int]:
    """How many answers came where a question wanted them, an inbox and another subject."""
    prefix = settings.subject_prefix
    client = await nats.connect(settings.nats(), connect_timeout=5)
    try:
        inbox, elsewhere = (
            await client.subscribe(f"{prefix}.inbox.here"),
            await client.subscribe(f"{prefix}.events.w.x"),
        )
        for reply in (f"{prefix}.events.w.x", f"{prefix}.inbox.here"):
            await client.publish(f"{prefix}.leave", question().model_dump_json().encode(), reply=reply)
        await inbox.next_msg(timeout=20)  # questions are answered in their order
        return {"inbox": 1, "elsewhere": elsewhere.pending_msgs}
    finally:
        await client.close()


def test_outside_a_run_it_is_said_what_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidRequest, match="GitHub Actions run, with repository"):
        this_run(settings, workers=1, runtime=60.0)
