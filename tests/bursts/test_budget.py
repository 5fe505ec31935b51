"""Whether a burst may start: arithmetic over what is recorded, one decision after the other."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.bursts import budget, records
from howl.bursts.budget import Leave, Run
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections import postgres
from howl.models import Burst, Worker


@pytest.fixture
def told(settings: Settings) -> Settings:
    return settings.model_copy(update={"budget_minutes": 100, "burst_concurrency": 10})


def wish(workers: int = 2, minutes: float = 10, **columns: Any) -> BurstRequest:
    return BurstRequest(workers=workers, runtime=minutes * 60, **columns)


def run(number: int = 123, attempt: str = "1", index: str | None = None) -> Run:
    return Run(repository="owner/name", run_id=str(number), attempt=attempt, index=index)


def ask(told: Settings, request: BurstRequest, by: Run | None = None) -> Leave:
    with postgres.session(told.database()) as session:
        return budget.ask(session, told, request, by)


def sums(told: Settings) -> dict[str, Any]:
    with postgres.session(told.database()) as session:
        return budget.look(session, told)


def bursts(told: Settings) -> list[Burst]:
    with postgres.session(told.database()) as session:
        return list(session.scalars(select(Burst).order_by(Burst.started_at)))


def came(session: Session, by: Run, index: int, *, minutes: float, status: str = "offline", ago: float = 10.0) -> None:
    """A worker of the run that was there for so long."""
    left = datetime.now(UTC) - timedelta(minutes=ago)
    session.add(
        Worker(
            worker_id=f"worker-{by.run_id}-{by.attempt}-{index}", status=status,
            run={"repository": by.repository, "run_id": by.run_id, "attempt": by.attempt, "index": str(index)},
            registered_at=left - timedelta(minutes=minutes), last_heartbeat_at=left,
            offline_at=left if status == "offline" else None,
        )
    )  # fmt: skip
    session.commit()


def test_what_is_granted_is_planned_and_a_jobs_minutes_are_rounded_up(told: Settings) -> None:
    leave = ask(told, wish(workers=3, minutes=9.5))
    assert (leave.refused, leave.matrix("worker")) == (None, [])
    assert [(row.minutes_planned, row.origin) for row in bursts(told)] == [(30, "github-actions")]
    assert (sums(told)["used"], sums(told)["planned"], sums(told)["left"]) == (0, 30, 70)


def test_a_refusal_shows_the_arithmetic_and_takes_nothing(told: Settings) -> None:
    ask(told, wish(workers=2, minutes=30))
    refused = ask(told, wish(workers=3, minutes=14)).refused
    assert refused is not None
    assert "3 workers x 14 min = 42 minutes, and 40 of this month's 100 are left (0 used, 60 planned)" in refused
    assert sums(told)["planned"] == 60


def test_more_workers_at_once_than_may_be_are_refused(told: Settings) -> None:
    ask(told, wish(workers=8, minutes=1))
    refused = ask(told, wish(workers=3, minutes=1)).refused
    assert refused is not None
    assert "3 workers and the 8 of bursts under way are 11, and 10 may be at once" in refused
    assert ask(told, wish(workers=2, minutes=1)).refused is None


@pytest.mark.parametrize("asked", [wish(workers=0), wish(workers=257), wish(minutes=0), wish(minutes=351)])
def test_what_github_would_never_run_is_refused(settings: Settings, asked: BurstRequest) -> None:
    rich = settings.model_copy(update={"budget_minutes": 1_000_000, "burst_concurrency": 1000})
    assert ask(rich, asked).refused is not None
    assert bursts(rich) == []


def test_two_who_ask_at_once_do_not_both_get_the_last_minutes(told: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(told, wish(workers=1, minutes=40), run(number)), range(8)))
    assert len([leave for leave in answers if leave.refused is None]) == 2
    assert sums(told)["planned"] == 80


def test_a_run_that_asks_twice_gets_the_same_answer(told: Settings) -> None:
    first = ask(told, wish(workers=2), run())
    assert ask(told, wish(workers=9, minutes=1), run()) == first
    assert first.matrix("worker") == [{"index": 1, "name": "worker-123-1-1"}, {"index": 2, "name": "worker-123-1-2"}]
    assert len(bursts(told)) == 1


def test_a_run_that_was_refused_stays_refused(told: Settings) -> None:
    first = ask(told, wish(workers=2, minutes=60), run())
    assert first.refused is not None
    assert ask(told, wish(workers=1, minutes=1), run()) == first
    assert first.matrix("worker") == []
    assert (sums(told)["left"], sums(told)["workers"]) == (100, 0)


def test_a_second_attempt_of_a_run_is_a_burst_of_its_own(told: Settings) -> None:
    first = ask(told, wish(minutes=20), run())
    second = ask(told, wish(minutes=20, burst_id=first.burst_id), run(attempt="2"))
    assert second.burst_id != first.burst_id
    assert second.matrix("worker")[0]["name"] == "worker-123-2-1"
    assert sums(told)["planned"] == 80


def test_a_job_that_is_run_again_alone_is_a_burst_of_one_worker(told: Settings) -> None:
    ask(told, wish(workers=3, minutes=10), run())
    again = ask(told, wish(workers=1, minutes=10), run(attempt="2", index="3"))
    assert again.matrix("worker") == [{"index": 3, "name": "worker-123-2-3"}]
    assert ask(told, wish(workers=1, minutes=20), run(attempt="2", index="3")) == again
    assert ask(told, wish(workers=1, minutes=10), run(attempt="2", index="2")).burst_id != again.burst_id
    assert sums(told)["planned"] == 50


def test_a_job_whose_plan_asked_in_the_same_attempt_is_told_the_same_for_itself(told: Settings) -> None:
    plan = ask(told, wish(workers=3, minutes=10), run())
    job = ask(told, wish(workers=1, minutes=10), run(index="3"))
    assert (job.burst_id, job.matrix("worker")) == (plan.burst_id, [{"index": 3, "name": "worker-123-1-3"}])
    assert ask(told, wish(workers=1, minutes=10), run(index="4")).burst_id != plan.burst_id  # one nobody planned
    assert ask(told, wish(workers=3, minutes=10), run()).matrix("worker") == plan.matrix("worker")
    assert sums(told)["planned"] == 40


def test_a_job_of_a_plan_that_was_refused_is_refused_too(told: Settings) -> None:
    refused = ask(told, wish(workers=3, minutes=90), run()).refused
    assert refused is not None
    assert ask(told, wish(workers=1, minutes=1), run(index="1")).refused == refused


def test_a_burst_that_was_granted_becomes_the_run_that_it_started(told: Settings) -> None:
    request = wish(workers=2)
    ask(told, request)
    leave = ask(told, wish(workers=9, burst_id=request.burst_id), run())
    assert (leave.burst_id, len(leave.matrix("worker"))) == (request.burst_id, 2)
    assert [row.run["run_id"] for row in bursts(told)] == ["123"]


@pytest.mark.parametrize("limits", [{"budget_minutes": 19}, {"burst_concurrency": 1}], ids=str)
def test_the_servers_limits_count_whatever_those_of_who_started_it(told: Settings, limits: dict[str, int]) -> None:
    request = wish(workers=2, minutes=10)
    assert ask(told, request).refused is None
    server = told.model_copy(update=limits)
    leave = ask(server, request, run())
    assert leave.refused is not None
    assert leave.matrix("worker") == []
    assert (sums(server)["planned"], sums(server)["workers"]) == (0, 0)
    assert ask(told, request, run()).refused == leave.refused  # a run stays refused


def test_a_burst_does_not_count_against_itself(told: Settings) -> None:
    request = wish(workers=10, minutes=10)  # all there is of both
    ask(told, request)
    assert ask(told, request, run()).refused is None


def test_a_burst_that_was_started_twice_runs_once(told: Settings) -> None:
    request = wish()
    ask(told, request)
    assert ask(told, request, run(1)).refused is None
    second = ask(told, request, run(2))
    assert second.refused is not None
    assert "is run 1 already" in second.refused
    assert sums(told)["planned"] == 20


def test_a_burst_that_was_given_up_is_not_begun_later(told: Settings) -> None:
    request = wish()
    ask(told, request)
    with postgres.session(told.database()) as session:
        budget.give_up(session, request.burst_id, "GitHub did not answer.")
    assert sums(told)["left"] == 100
    assert "given up" in (ask(told, request, run()).refused or "")


def test_minutes_used_are_settled_when_all_workers_have_left(told: Settings, session: Session) -> None:
    ask(told, wish(workers=2, minutes=20), run())
    came(session, run(), 1, minutes=4.2)
    assert (sums(told)["planned"], sums(told)["used"]) == (40, 0)
    came(session, run(), 2, minutes=0.1)
    assert (sums(told)["planned"], sums(told)["used"], sums(told)["left"]) == (0, 6, 94)
    (row,) = bursts(told)
    assert row.ended_at is not None


def test_a_job_that_is_run_again_adds_its_minutes_and_takes_none_from_the_attempt_before(
    told: Settings, session: Session
) -> None:
    first = ask(told, wish(workers=2, minutes=20), run())
    came(session, run(), 1, minutes=4)
    came(session, run(), 2, minutes=3)
    assert sums(told)["used"] == 7
    again = ask(told, wish(workers=1, minutes=20), run(attempt="2", index="2"))
    assert (sums(told)["used"], sums(told)["planned"]) == (7, 20)
    came(session, run(attempt="2"), 1, minutes=9)  # another job's
    came(session, run(attempt="2"), 2, minutes=6)
    assert (sums(told)["used"], sums(told)["planned"]) == (13, 0)
    rows = {row["burst_id"]: row["registered"] for row in records.list_all(session, 3600)}
    assert rows == {first.burst_id: 2, again.burst_id: 1}


def test_a_burst_is_not_over_while_one_of_its_workers_is_there(told: Settings, session: Session) -> None:
    ask(told, wish(workers=2, minutes=20), run())
    came(session, run(), 1, minutes=4)
    came(session, run(), 2, minutes=4, status="active", ago=0)
    assert (sums(told)["planned"], sums(told)["used"]) == (40, 0)


def test_a_worker_that_fell_silent_just_now_may_come_back(told: Settings, session: Session) -> None:
    ask(told, wish(workers=1, minutes=20), run())
    came(session, run(), 1, minutes=4, status="lost", ago=1)
    assert sums(told)["planned"] == 20


def test_a_burst_none_of_whose_workers_ever_came_is_over_some_day(told: Settings) -> None:
    ask(told, wish(workers=2, minutes=20), run())
    with postgres.session(told.database()) as session:
        session.scalars(select(Burst)).one().started_at -= timedelta(minutes=20) + budget.LATEST
    assert sums(told)["planned"] == 0
    assert [row.minutes_used for row in bursts(told)] == [2]  # of last month, should it have begun since


def test_workers_of_another_run_are_not_a_bursts_own(told: Settings, session: Session) -> None:
    ask(told, wish(workers=1, minutes=20), run())
    came(session, run(124), 1, minutes=4)
    came(session, run(attempt="2"), 1, minutes=4)
    assert sums(told)["planned"] == 20


def test_what_was_used_last_month_is_not_counted(told: Settings) -> None:
    with postgres.session(told.database()) as session:
        for days, minutes in ((40, 90), (0, 7)):
            began = datetime.now(UTC) - timedelta(days=days)
            session.add(
                Burst(
                    burst_id=str(days), origin=budget.ON_GITHUB, num_workers=1, runtime_minutes=1, minutes_planned=1,
                    minutes_used=minutes, started_at=began, ended_at=began,
                )
            )  # fmt: skip
    assert sums(told)["used"] == 7


def test_a_burst_on_this_machine_takes_nothing_of_the_budget(told: Settings) -> None:
    with postgres.session(told.database()) as session:
        session.add(Burst(burst_id="b", origin="local", num_workers=50, runtime_minutes=60, minutes_planned=3000))
    assert (sums(told)["left"], sums(told)["workers"]) == (100, 0)
