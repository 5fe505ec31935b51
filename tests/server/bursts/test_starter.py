"""Bursts that the server starts by itself: real servers, GitHub's API on loopback, and a clock of the test's."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from howl.bursts import github_api
from howl.bursts.schedule import Demand, Schedule
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.embedded.stack import Stack
from howl.errors import DatabaseUnavailable, SettingsError
from howl.models import Burst, Task, Worker
from howl.server.bursts.starter import BY_DEMAND, BY_SCHEDULE, LATE, Starter, starter_of
from howl.submission import TaskRequest, submit
from tests.helpers.fake_github import REPOSITORY, TOKEN, FakeGitHub, fake_github
from tests.helpers.support import Process, eventually

MINUTE = timedelta(minutes=1)
#: A Monday. What compares it with PostgreSQL's clock, which is not the test's, takes the present instead.
NOON = datetime(2024, 1, 1, 12, 0, 20, tzinfo=UTC)


class Clock:
    """A time that moves when a test says so."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGitHub]:
    monkeypatch.setattr(github_api, "FIRST_WAIT", 0.01)
    with fake_github() as running:
        yield running


@pytest.fixture
def told(settings: Settings, fake: FakeGitHub) -> Settings:
    given = {"github_repository": REPOSITORY, "github_token": SecretStr(TOKEN), "github_api": fake.url}
    return settings.model_copy(update=given | {"loopback_only": True})


def starter(told: Settings, clock: Clock, **given: Any) -> Starter:
    return Starter(told.model_copy(update=given), clock)


def rows(told: Settings) -> list[Burst]:
    with postgres.session(told.database()) as session:
        return list(session.scalars(select(Burst).order_by(Burst.started_at)))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- the schedule ------------------------------------------------------------------------------------------------


def test_a_burst_starts_at_its_minute_and_once(told: Settings, fake: FakeGitHub) -> None:
    clock = Clock(NOON - 10 * MINUTE)
    ours = starter(told, clock, burst_schedule="0 12 * * *", burst_workers=2, burst_runtime=600.0)
    ours.look()
    assert fake.runs == []
    for clock.now in (NOON, NOON + timedelta(seconds=5), NOON + MINUTE):
        ours.look()
    (run,) = fake.runs
    assert (run["inputs"]["num_workers"], run["inputs"]["runtime_minutes"]) == ("2", "10")
    (row,) = rows(told)
    assert (row.requested_by, row.run["run_id"], row.minutes_planned) == (BY_SCHEDULE, str(run["id"]), 20)


def test_each_of_its_minutes_is_a_burst(told: Settings, fake: FakeGitHub) -> None:
    clock = Clock(NOON - 10 * MINUTE)
    ours = starter(told, clock, burst_schedule="0 12 * * *; 1 12 * * mon")
    for clock.now in (NOON, NOON + MINUTE, NOON + 2 * MINUTE):
        ours.look()
    assert len({run["inputs"]["burst_id"] for run in fake.runs}) == len(fake.runs) == 2


def test_two_servers_at_once_start_it_once(told: Settings, fake: FakeGitHub, caplog: pytest.LogCaptureFixture) -> None:
    servers = [starter(told, Clock(), burst_schedule="0 12 * * *") for _ in range(4)]
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(Starter.look, servers))
    assert len(fake.runs) == len(rows(told)) == 1
    assert warnings(caplog) == []


def test_two_installations_of_one_repository_have_bursts_of_their_own(told: Settings, stack: Stack) -> None:
    databases = (told.database(), told.database(), stack.urls.database_url)
    ids = [starter(told, Clock(), database_url=url)._id(BY_SCHEDULE, "2024-01-01T12:00") for url in databases]
    assert ids[0] == ids[1] != ids[2]


def test_a_server_restarted_within_the_minute_does_not_start_it_again(told: Settings, fake: FakeGitHub) -> None:
    for _ in range(2):
        starter(told, Clock(), burst_schedule="0 12 * * *").look()
    assert len(fake.runs) == 1


@pytest.mark.parametrize(("late", "runs"), [(LATE - MINUTE, 1), (LATE + MINUTE, 0)])
def test_a_minute_missed_is_made_up_for_only_soon(told: Settings, fake: FakeGitHub, late: timedelta, runs: int) -> None:
    starter(told, Clock(NOON + late), burst_schedule="0 12 * * *").look()
    assert len(fake.runs) == runs


def test_of_several_minutes_missed_the_newest_counts(told: Settings, fake: FakeGitHub) -> None:
    starter(told, Clock(), burst_schedule="* * * * *").look()
    assert len(fake.runs) == 1


def test_a_refusal_is_one_line_with_the_arithmetic(
    told: Settings, fake: FakeGitHub, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ours = starter(told, clock, burst_schedule="0 12 * * *", budget_minutes=80)
    for clock.now in (NOON, NOON + timedelta(seconds=5), NOON + MINUTE):
        ours.look()
    (line,) = warnings(caplog)
    assert "3 workers x 30 min = 90 minutes, and 80 of this month's 80 are left" in line
    assert fake.requests == []


def test_what_github_refuses_is_one_line_and_takes_no_minutes(
    told: Settings, fake: FakeGitHub, caplog: pytest.LogCaptureFixture
) -> None:
    ours = starter(told, Clock(), burst_schedule="0 12 * * *", github_token=SecretStr("ghp_wrong"))
    ours.look()
    ours.look()
    (line,) = warnings(caplog)
    assert "HOWL_GITHUB_TOKEN" in line
    assert "ghp_wrong" not in line
    (row,) = rows(told)
    assert row.minutes_used == 0


def test_a_minute_at_which_the_database_was_away_is_not_forgotten(told: Settings, fake: FakeGitHub) -> None:
    ours = starter(told, Clock(), burst_schedule="0 12 * * *")
    ours.settings = ours.settings.model_copy(update={"database_url": "postgresql://howl@127.0.0.1:1/none"})
    with pytest.raises(DatabaseUnavailable):
        ours.look()
    ours.settings = told
    ours.look()
    assert len(fake.runs) == 1


# --- the threshold -----------------------------------------------------------------------------------------------


@pytest.fixture
def queue(app: Celery, session: Session) -> Callable[..., str]:
    """Submit a task that nobody takes."""

    def _queue(**given: Any) -> str:
        return submit(TaskRequest(name="command.run", args=[["true"]], **given), session, app)

    return _queue


def test_more_waiting_than_the_threshold_is_a_burst(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str]
) -> None:
    ours = starter(told, Clock(datetime.now(UTC)), burst_when="waiting > 1")
    queue()
    ours.look()
    assert fake.runs == []
    queue()
    ours.look()
    (row,) = rows(told)
    assert (row.requested_by, len(fake.runs)) == (BY_DEMAND, 1)


def test_the_oldest_waiting_longer_than_the_threshold_is_a_burst(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str], session: Session
) -> None:
    ours = starter(told, Clock(datetime.now(UTC)), burst_when="oldest > 5m")
    task_id = queue()
    ours.look()
    assert fake.runs == []
    session.execute(update(Task).where(Task.task_id == task_id).values(queued_at=datetime.now(UTC) - 6 * MINUTE))
    session.commit()
    ours.look()
    assert len(fake.runs) == 1


@pytest.mark.parametrize("when", ["waiting > 0", "oldest > 0.001s"])
def test_what_waits_for_one_worker_calls_for_no_burst(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str], session: Session, when: str
) -> None:
    session.add(Worker(worker_id="w1"))
    session.commit()
    ours = starter(told, Clock(datetime.now(UTC)), burst_when=when)
    queue(worker_id="w1")
    ours.look()
    assert fake.runs == []
    queue()
    ours.look()
    assert len(fake.runs) == 1


def test_the_next_burst_of_a_threshold_waits_for_the_cool_down_although_the_server_is_another(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str]
) -> None:
    queue()
    begun = datetime.now(UTC)
    for minutes, runs in ((0, 1), (9, 1), (11, 2)):
        starter(told, Clock(begun + minutes * MINUTE), burst_when="waiting > 0", burst_most=9).look()
        assert len(fake.runs) == runs


def test_a_threshold_starts_no_more_bursts_than_may_be_under_way(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str], session: Session
) -> None:
    queue()
    clock = Clock(datetime.now(UTC))
    ours = starter(told, clock, burst_when="waiting > 0")
    ours.look()
    clock.now += 20 * MINUTE
    ours.look()
    assert len(fake.runs) == 1
    session.execute(update(Burst).values(ended_at=datetime.now(UTC), minutes_used=1))
    session.commit()
    ours.look()
    assert len(fake.runs) == 2


def test_two_servers_that_see_the_same_threshold_passed_start_one_burst(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str]
) -> None:
    queue()
    clock = Clock(datetime.now(UTC))
    servers = [starter(told, clock, burst_when="waiting > 0", burst_most=9) for _ in range(4)]
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(Starter.look, servers))
    assert len(fake.runs) == len(rows(told)) == 1


def test_a_refused_threshold_asks_again_after_the_cool_down(
    told: Settings, fake: FakeGitHub, queue: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    queue()
    clock = Clock(datetime.now(UTC))
    ours = starter(told, clock, burst_when="waiting > 0", burst_concurrency=2)
    for minutes, lines in ((0, 1), (1, 1), (11, 2)):
        clock.now = datetime.now(UTC) + minutes * MINUTE
        ours.look()
        assert len(warnings(caplog)) == lines
    assert "2 may be at once" in warnings(caplog)[0]
    assert fake.requests == []


# --- settings and service ----------------------------------------------------------------------------------------


def test_the_fields_of_a_schedule_are_those_of_cron() -> None:
    schedule = Schedule.parse("  */15  8-9 1 1 mon ")
    assert schedule.newest(NOON - 24 * 60 * MINUTE, NOON) == NOON.replace(hour=9, minute=45, second=0)
    assert Schedule.parse("0 12 * * sun").newest(NOON - MINUTE, NOON) is None
    assert Schedule.parse("0 12 * * 1").newest(NOON - MINUTE, NOON) == NOON.replace(second=0)


@pytest.mark.parametrize(
    "text", ["* * * *", "61 * * * *", "x * * * *", "1,,2 * * * *", "* * * * *;", " ", "*/0 * * * *"]
)
def test_what_is_no_schedule_is_said_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(SettingsError, match=r"HOWL_BURST_SCHEDULE: .* write five fields"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    "text",
    ["waiting", "waiting > 5m", "waiting > -1", "waiting < 5", "oldest > soon", "load > 1", "waiting > 1 or 2", ""],
)
def test_what_is_no_threshold_is_said_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(SettingsError, match=r"HOWL_BURST_WHEN: .* write `waiting > 100` or `oldest > 5m`"):
        Demand.parse(text)


def test_a_threshold_may_be_reached_or_passed() -> None:
    assert [Demand.parse("waiting > 100").is_met(number) for number in (100, 101)] == [False, True]
    assert [Demand.parse("oldest>=5m").is_met(seconds) for seconds in (299, 300)] == [False, True]


def test_lengths_of_time_are_written_as_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOWL_BURST_RUNTIME", "45m")
    assert load_settings().burst_runtime == 2700
    monkeypatch.setenv("HOWL_BURST_COOLDOWN", "soon")
    with pytest.raises(SettingsError, match=r"HOWL_BURST_COOLDOWN: .* write 90s, 30m"):
        load_settings()


def test_without_a_setting_there_is_no_starter_and_no_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert starter_of(settings) is None
    assert warnings(caplog) == []


def test_without_github_a_schedule_is_one_warning(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert starter_of(settings.model_copy(update={"burst_schedule": "* * * * *"})) is None
    (line,) = warnings(caplog)
    assert "HOWL_GITHUB_TOKEN" in line


@pytest.fixture
def github_env(env: dict[str, str], fake: FakeGitHub) -> dict[str, str]:
    given = {"REPOSITORY": REPOSITORY, "TOKEN": TOKEN, "API": fake.url}
    return env | {f"HOWL_GITHUB_{name}": value for name, value in given.items()}


def test_a_running_server_starts_the_bursts_of_its_schedule(
    told: Settings, fake: FakeGitHub, github_env: dict[str, str], start: Callable[..., Process]
) -> None:
    process = start("server", env=github_env | {"HOWL_BURST_SCHEDULE": "* * * * *", "HOWL_BURST_WORKERS": "1"})
    eventually(lambda: fake.runs or process.popen.poll() is not None)
    eventually(lambda: str(fake.runs[-1]["id"]) in {row.run.get("run_id") for row in rows(told)})
    assert TOKEN not in process.output


def test_a_server_with_a_wrong_schedule_says_so_and_ends(
    github_env: dict[str, str], start: Callable[..., Process]
) -> None:
    process = start("server", env=github_env | {"HOWL_BURST_SCHEDULE": "daily"})
    assert process.popen.wait(30) != 0
    assert "HOWL_BURST_SCHEDULE: 'daily' is no schedule" in process.output
    assert "Traceback" not in process.output
