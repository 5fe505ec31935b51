"""A run asks for leave over NATS, with a worker's credential, and `howl server` answers."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import nats
import pytest
from sqlalchemy import func, select

from howl.bursts import budget, records
from howl.bursts.admission import LeaveAnswer, LeaveRequest, ask, this_run
from howl.bursts.budget import Run
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections import postgres
from howl.errors import InvalidRequest, ServerUnavailable
from howl.models import Burst, Worker
from howl.server.bursts.admission import A_MINUTE, Porter
from tests.helpers.support import Process

RUN = {"GITHUB_REPOSITORY": "owner/name", "GITHUB_RUN_ID": "123", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_ACTIONS": "true",
       "GITHUB_ACTOR": "octocat", "GITHUB_EVENT_NAME": "push"}  # fmt: skip


def question(**columns: Any) -> LeaveRequest:
    return LeaveRequest(**{"repository": "owner/name", "run_id": "123", "workers": 2, "runtime": 600.0} | columns)


def rows(settings: Settings) -> int:
    with postgres.session(settings.database()) as session:
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
    with postgres.session(settings.database()) as session:
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


def test_a_job_that_is_run_again_asks_for_itself_alone(
    start: Callable[..., Process], server: Process, worker_env: dict[str, str], settings: Settings
) -> None:
    again = worker_env | {"GITHUB_RUN_ATTEMPT": "2"}
    words = ("--workers", "9", "--index", "3", "--runtime", "10m", "--json")
    process = start("burst", "leave", *words, env=RUN | again)
    assert process.wait() == 0, process.output
    answer = json.loads(process.output)
    assert (answer["granted"], answer["matrix"]) == (True, [{"index": 3, "name": "worker-123-2-3"}])
    with postgres.session(settings.database()) as session:
        (row,) = session.scalars(select(Burst)).all()
    assert (row.num_workers, row.minutes_planned, row.run["index"]) == (1, 10, "3")


@pytest.mark.parametrize("index", [0, 257, "3"])
def test_a_job_that_no_matrix_has_is_not_recorded(settings: Settings, index: object) -> None:
    asked = json.dumps(json.loads(question().model_dump_json()) | {"index": index}).encode()
    assert "cannot read" in (Porter(settings).decide(asked, "burst").failed or "")
    assert rows(settings) == 0


def test_a_job_cannot_become_the_burst_that_howl_started(settings: Settings) -> None:
    request = BurstRequest(workers=2, runtime=600.0)
    with postgres.session(settings.database()) as session:
        budget.ask(session, settings, request)
    told = decide(Porter(settings), "burst", index=1, burst_id=request.burst_id)
    assert (told.granted, told.burst_id != request.burst_id, rows(settings)) == (True, True, 2)


def test_without_a_server_it_is_said_who_does_not_answer(settings: Settings) -> None:
    with pytest.raises(ServerUnavailable, match="No `howl server` listens"):
        ask(question(), settings)


def test_without_nats_it_is_said_what_cannot_be_used(settings: Settings) -> None:
    with pytest.raises(ServerUnavailable, match="NATS cannot be used"):
        ask(question(), settings.model_copy(update={"nats_url": "nats://127.0.0.1:1"}))


def test_a_server_without_its_database_says_to_try_again(settings: Settings) -> None:
    porter = Porter(settings.model_copy(update={"database_url": "postgresql://howl:secret@127.0.0.1:1/none"}))
    answer = porter.decide(question().model_dump_json().encode(), "burst")
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
    assert "cannot read" in (Porter(settings).decide(asked, "burst").failed or "")
    assert rows(settings) == 0


def decide(porter: Porter, credential: str, **columns: Any) -> LeaveAnswer:
    return porter.decide(question(**columns).model_dump_json().encode(), credential)


def test_who_asks_without_end_is_put_off_alone_and_fills_no_table(settings: Settings) -> None:
    porter = Porter(settings)
    answers = [decide(porter, "thief", run_id=str(run)) for run in range(A_MINUTE + 5)]
    assert ["at once" in (answer.failed or "") for answer in answers] == [False] * A_MINUTE + [True] * 5
    assert rows(settings) == A_MINUTE
    assert decide(porter, "burst").granted


def test_who_asks_for_days_is_refused_without_a_row(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "A_DAY", 3)
    answers = [decide(Porter(settings), "thief", run_id=str(run)) for run in range(5)]
    assert ["within a day" in (answer.reason or "") for answer in answers] == [False] * 3 + [True] * 2
    assert (rows(settings), decide(Porter(settings), "thief", run_id="0").granted) == (3, answers[0].granted)
    assert decide(Porter(settings), "burst").granted


def test_who_asks_early_under_a_public_run_id_is_told_nothing_for_the_run_itself(settings: Settings) -> None:
    assert decide(Porter(settings), "thief", workers=200, runtime=20_000.0).reason is not None
    told = decide(Porter(settings), "burst")
    assert (told.granted, len(told.matrix)) == (True, 2)
    assert decide(Porter(settings), "burst", workers=9) == told


def test_runs_that_never_were_take_no_more_than_their_credentials_share(settings: Settings) -> None:
    porter = Porter(settings.model_copy(update={"budget_minutes": 1000, "burst_concurrency": 20}))
    answers = [decide(porter, "thief", run_id=str(run), workers=5, runtime=1800.0) for run in range(4)]
    assert [answer.granted for answer in answers] == [True, True, False, False]
    assert "with the credential thief, of which 300 minutes and 10 workers are taken" in (answers[2].reason or "")
    assert decide(porter, "burst", workers=5, runtime=1800.0).granted
    request = BurstRequest(workers=5, runtime=1800.0)
    with postgres.session(settings.database()) as session:
        assert budget.ask(session, porter.settings, request).refused is None  # a person's, or the server's own


def test_a_burst_that_howl_started_is_the_run_that_github_says(settings: Settings) -> None:
    request = BurstRequest(workers=2, runtime=600.0)
    with postgres.session(settings.database()) as session:
        budget.ask(session, settings, request)
    decide(Porter(settings), "thief", run_id="666", burst_id=request.burst_id)
    with postgres.session(settings.database()) as session:
        budget.became(session, request.burst_id, Run(repository="owner/name", run_id="123"), "https://github.com/x")
    told = decide(Porter(settings), "burst", burst_id=request.burst_id)
    assert (told.granted, told.burst_id) == (True, request.burst_id)
    assert decide(Porter(settings), "thief", burst_id=request.burst_id) == told


def test_another_credentials_workers_are_none_of_a_bursts(settings: Settings) -> None:
    told = decide(Porter(settings), "burst")
    run = {"repository": "owner/name", "run_id": "123", "attempt": "1"}
    with postgres.session(settings.database()) as session:
        for credential in ("burst", "thief", None):
            session.add(Worker(worker_id=f"of {credential}", run=run, credential=credential))
        session.flush()
        row = session.get_one(Burst, told.burst_id)
        assert [worker.worker_id for worker in records.crew(session, row)] == ["of None", "of burst"]


def test_a_header_that_nobody_can_read_does_not_end_the_answers(server: Process, settings: Settings) -> None:
    assert ask(question(), settings).granted
    asyncio.run(_with_a_bad_header(settings))
    assert ask(question(run_id="124"), settings).granted


async def _with_a_bad_header(settings: Settings) -> None:
    client = await nats.connect(settings.nats())
    subject = f"{settings.subject_prefix}.leave.howl".encode()
    await client._send_command(b"HPUB %s inbox 7 9\r\ngarbage{}\r\n" % subject)
    await client.flush()
    await client.close()


def test_outside_a_run_it_is_said_what_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidRequest, match="GitHub Actions run, with repository"):
        this_run(settings, workers=1, runtime=60.0)
