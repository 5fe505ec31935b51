"""`howl burst` as a person and a program use it, against a GitHub on loopback."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from howl.bursts import watch
from howl.bursts.budget import Run, became
from howl.config import Settings
from howl.connections import postgres
from howl.errors import BurstFailed
from howl.models import Burst, Worker
from tests.helpers.fake_github import REPOSITORY, TOKEN, FakeGitHub, fake_github
from tests.helpers.support import Process, eventually


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with fake_github() as running:
        yield running


@pytest.fixture
def on_github(env: dict[str, str], fake: FakeGitHub) -> dict[str, str]:
    return env | {
        "HOWL_GITHUB_REPOSITORY": REPOSITORY, "HOWL_GITHUB_TOKEN": TOKEN, "HOWL_GITHUB_API": fake.url,
        "HOWL_BUDGET_MINUTES": "100",
    }  # fmt: skip


@pytest.fixture
def howl(start: Callable[..., Process], on_github: dict[str, str]) -> Callable[..., Any]:
    """What a command printed, as JSON; it must end well."""

    def _howl(*words: str) -> Any:
        process = start("burst", *words, "--json", env=on_github)
        assert process.wait() == 0, process.output
        return json.loads(process.output[process.output.index("\n") + 1 :] if words[0] == "start" else process.output)

    return _howl


def register(settings: Settings, run_id: str, index: int) -> None:
    run = {"repository": REPOSITORY, "run_id": run_id, "attempt": "1", "index": str(index)}
    with postgres.session(settings.database()) as session:
        session.add(Worker(worker_id=f"worker-{run_id}-1-{index}", run=run))


def test_a_burst_is_started_listed_counted_and_stopped(howl: Callable[..., Any], fake: FakeGitHub) -> None:
    started = howl("start", "--workers", "2", "--runtime", "30m", "--detach")
    assert started["run_id"] == str(fake.runs[0]["id"])
    (listed,) = howl("list")
    assert (listed["burst_id"], listed["status"], listed["registered"]) == (started["burst_id"], "running", 0)
    sums = howl("budget")
    assert (sums["planned"], sums["left"], sums["workers"]) == (60, 40, 2)
    howl("stop", started["burst_id"][:8])
    assert fake.runs[0]["conclusion"] == "cancelled"
    assert howl("budget")["planned"] == 0
    assert howl("list")[0]["status"] == "cancelled"


def test_a_start_waits_until_all_workers_of_its_run_have_registered(
    start: Callable[..., Process], on_github: dict[str, str], fake: FakeGitHub, settings: Settings
) -> None:
    process = start("burst", "start", "--workers", "2", "--runtime", "30m", env=on_github)
    eventually(lambda: "0 of 2 workers registered" in process.output)
    run_id = str(fake.runs[0]["id"])
    register(settings, "1", 1)  # another's
    register(settings, run_id, 1)
    eventually(lambda: "1 of 2 workers registered" in process.output)
    assert process.popen.poll() is None
    register(settings, run_id, 2)
    assert process.wait() == 0
    assert "2 of 2 workers registered" in process.output
    assert TOKEN not in process.output


def test_a_refused_burst_shows_the_arithmetic_and_ends_with_status_1(
    start: Callable[..., Process], on_github: dict[str, str], fake: FakeGitHub
) -> None:
    process = start("burst", "start", "--workers", "4", "--runtime", "30m", env=on_github)
    assert process.wait() == 1
    assert "4 workers x 30 min = 120 minutes, and 100 of this month's 100 are left" in process.output
    assert fake.requests == []


def test_a_run_that_fails_before_its_workers_come_is_not_waited_for(
    howl: Callable[..., Any], fake: FakeGitHub, settings: Settings
) -> None:
    burst_id = howl("start", "--workers", "2", "--runtime", "30m", "--detach")["burst_id"]
    fake.runs[0] |= {"status": "completed", "conclusion": "failure"}
    told = settings.model_copy(
        update={"github_repository": REPOSITORY, "github_token": SecretStr(TOKEN), "github_api": fake.url}
    )
    with pytest.raises(BurstFailed, match=r"ended \(failure\) when 0 of 2 workers registered: http"):
        list(watch.watch(burst_id, told))


def test_workers_that_do_not_come_in_time_may_still_come(
    howl: Callable[..., Any], fake: FakeGitHub, settings: Settings
) -> None:
    burst_id = howl("start", "--workers", "1", "--runtime", "30m", "--detach")["burst_id"]
    looks = watch.watch(burst_id, settings, timeout=0)
    assert next(looks).registered == 0
    with pytest.raises(BurstFailed, match="others may still come"):
        next(looks)


def test_githubs_word_replaces_what_a_run_has_said_of_itself(
    howl: Callable[..., Any], fake: FakeGitHub, settings: Settings
) -> None:
    started = howl("start", "--workers", "1", "--runtime", "30m", "--detach")
    with postgres.session(settings.database()) as session:
        row = session.get_one(Burst, started["burst_id"])
        row.run = {"repository": REPOSITORY, "run_id": "5", "attempt": "1", "credential": "thief"}
    assert howl("list")[0]["run"]["run_id"] == "5"
    with postgres.session(settings.database()) as session:
        became(session, started["burst_id"], Run(repository=REPOSITORY, run_id=started["run_id"]), "elsewhere")
    assert howl("list")[0]["run"]["run_id"] == started["run_id"]
