"""Bursts of real worker processes on this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.bursts import local
from howl.bursts.local import LocalBurst
from howl.bursts.request import BurstRequest
from howl.bursts.stop import stop
from howl.config import Settings
from howl.connections import postgres
from howl.errors import BurstFailed, NotConfigured, WorkerSilent
from howl.models import Burst, Worker
from howl.submission import TaskRequest, submit
from tests.helpers.support import Process, eventually

ROOT = str(Path(__file__).parent.parent.parent)
CLI = (sys.executable, "-m", "howl.cli")


@pytest.fixture
def told(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the tests' tasks, and a folder of the test's own for logs."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    return settings.model_copy(update={"task_modules": ("tests.tasks",), "home": tmp_path, "loopback_only": True})


@pytest.fixture
def start_burst(told: Settings, server: Process) -> Any:
    """Start a burst that is drained, at the latest, when the test ends."""
    started: list[LocalBurst] = []

    def _start(**asked: Any) -> LocalBurst:
        request = BurstRequest(**{"workers": 1, "runtime": 120.0, "grace": 20.0, "concurrency": 1} | asked)
        started.append(local.start(request, told))
        return started[-1]

    yield _start
    for burst in started:
        local.kill(burst)


def row(settings: Settings, burst_id: str) -> Burst:
    with postgres.session(settings.database()) as session:
        return session.scalars(select(Burst).where(Burst.burst_id == burst_id)).one()


def sleeping_task(seconds: float, session: Session, app: Celery) -> str:
    return submit(TaskRequest(name="tests.sleep", args=[seconds]), session, app)


def gated_task(folder: Path, session: Session, app: Celery) -> tuple[str, Path]:
    """A task that runs until the gate exists: its id, and the gate."""
    diary, gate = folder / "diary", folder / "gate"
    diary.touch()
    return submit(TaskRequest(name="tests.gated", args=[str(diary), str(gate)]), session, app), gate


def test_a_burst_registers_works_and_leaves_by_itself(
    start_burst: Callable[..., LocalBurst], told: Settings, session: Session, app: Celery
) -> None:
    burst = start_burst(workers=2, runtime=24.0, grace=4.0, tags=("fast", "near"), requested_by="a test")
    local.wait_until_registered(burst, told)
    for number in range(6):
        submit(TaskRequest(name="tests.add", args=[number, 1]), session, app)
    states = list(local.watch(burst, told))
    tasks = local.finish(burst, told)
    assert states[0].alive == 2
    assert (states[-1].alive, states[-1].ended) == (0, 6)
    assert sum(counts["succeeded"] for counts in tasks.values()) == 6
    assert [worker.process.returncode for worker in burst.workers] == [0, 0]
    written = row(told, burst.request.burst_id)
    assert (written.origin, written.requested_by, written.num_workers) == ("local", "a test", 2)
    assert written.ended_at is not None
    assert written.minutes_used == pytest.approx(sum(worker.seconds() for worker in burst.workers) / 60)
    assert written.request["tags"] == ["fast", "near"]


def test_draining_lets_a_running_task_end(
    start_burst: Callable[..., LocalBurst], told: Settings, session: Session, app: Celery, task_row: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    burst = start_burst()
    local.wait_until_registered(burst, told)
    task_id, gate = gated_task(tmp_path, session, app)
    eventually(lambda: task_row(task_id).status == "started")
    for _ in local.drain(burst):
        gate.touch()
    assert not burst.alive()
    assert local.finish(burst, told) == {burst.request.names[0]: {"succeeded": 1}}


def test_a_task_longer_than_the_grace_does_not_keep_its_worker(
    start_burst: Callable[..., LocalBurst], told: Settings, session: Session, app: Celery, task_row: Callable[..., Any]
) -> None:
    burst = start_burst(grace=1.0)
    local.wait_until_registered(burst, told)
    task_id = sleeping_task(300.0, session, app)
    eventually(lambda: task_row(task_id).status == "started")
    list(local.drain(burst))
    assert not burst.alive()
    assert task_row(task_id).status != "succeeded"


def test_a_worker_is_told_neither_postgresql_nor_a_secret_on_its_command_line(
    start_burst: Callable[..., LocalBurst], told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOWL_DATABASE_URL", "POSTGRES_PASSWORD", "PGPASSWORD", "HOWL_REDIS_URL", "FLOWER_BASIC_AUTH",
                 "READER_PASSWORD", "HOWL_GITHUB_TOKEN", "GITHUB_TOKEN", "GITHUB_ENV"):  # fmt: skip
        monkeypatch.setenv(name, "swordfish")
    process = start_burst().workers[0].process
    command_line = Path(f"/proc/{process.pid}/cmdline").read_text()
    environment = local.worker_environment(told.model_copy(update={"flower_basic_auth": ("me:swordfish",)}))
    assert "me:swordfish" not in environment.values()
    assert "swordfish" not in environment.values()
    assert told.database() not in environment.values()
    assert environment["HOWL_REDIS_URL"] == told.redis()
    assert "redis://" not in command_line


def test_a_workers_environment_makes_the_same_settings_but_for_postgresql(
    told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = local.worker_environment(told.model_copy(update={"agent_env": ("AGENT_KEY",), "allow_commands": True}))
    monkeypatch.setattr(os, "environ", given)
    read = Settings(_env_file=None)
    differing = {name for name in Settings.model_fields if getattr(read, name) != getattr(told, name)}
    assert differing == {"database_url", "agent_env", "allow_commands"}
    assert (read.agent_env, read.allow_commands, read.database_url) == (("AGENT_KEY",), True, None)


def test_an_agents_own_variables_reach_the_workers(told: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KEY", "for the agent")
    given = local.worker_environment(told.model_copy(update={"agent_env": ("AGENT_KEY", "NOT_SET")}))
    assert given["AGENT_KEY"] == "for the agent"


def test_workers_that_never_register_are_a_failure_that_shows_their_log(
    told: Settings, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = told.model_copy(update={"task_modules": ("no.such.module",)})
    burst = local.start(BurstRequest(workers=1, runtime=60.0), broken)
    with pytest.raises(BurstFailed, match=r"The task module no\.such\.module"):
        local.wait_until_registered(burst, broken)
    assert not burst.alive()


@pytest.mark.parametrize(
    "asked",
    [{"workers": 0}, {"workers": 65}, {"runtime": 90_000.0}, {"runtime": 10.0, "grace": 10.0}],
    ids=["no worker", "too many workers", "too long", "nothing but grace"],
)
def test_a_burst_that_makes_no_sense_is_refused_and_not_recorded(told: Settings, asked: dict[str, Any]) -> None:
    request = BurstRequest(**{"workers": 1, "runtime": 60.0} | asked)
    with pytest.raises(BurstFailed):
        local.start(request, told)
    with postgres.session(told.database()) as session:
        assert session.scalar(select(Burst)) is None


def test_a_burst_without_servers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured):
        local.start(BurstRequest(workers=1, runtime=60.0), Settings(_env_file=None, home=tmp_path))


def test_a_burst_that_is_stopped_ends_what_it_runs_and_shows_that_it_is_leaving(
    start_burst: Callable[..., LocalBurst], told: Settings, session: Session, app: Celery, task_row: Callable[..., Any],
    worker_row: Callable[[str], Any], tmp_path: Path,
) -> None:  # fmt: skip
    burst = start_burst()
    local.wait_until_registered(burst, told)
    task_id, gate = gated_task(tmp_path, session, app)
    eventually(lambda: task_row(task_id).status == "started")
    assert stop(burst.request.burst_id, told)["status"] == "stopping"
    eventually(lambda: worker_row(burst.request.names[0]).status == "draining")
    gate.touch()
    eventually(lambda: not burst.alive())
    assert local.finish(burst, told) == {burst.request.names[0]: {"succeeded": 1}}
    assert stop(burst.request.burst_id, told)["status"] == "cancelled"


@pytest.mark.parametrize("there", [False, True])
def test_a_burst_is_not_stopped_when_a_worker_of_it_has_not_heard(settings: Settings, there: bool) -> None:
    request = BurstRequest(workers=1, runtime=120.0)
    local._record_start(request, settings)
    with postgres.session(settings.database()) as session:
        if there:
            session.add(Worker(worker_id=request.names[0], status="active"))
    with pytest.raises(WorkerSilent, match="did not answer" if there else "has not hears nothing"):
        stop(request.burst_id, settings)
    assert row(settings, request.burst_id).run.get("conclusion") is None


# --- howl burst start --------------------------------------------------------------------------------------------


def burst_ids(settings: Settings) -> list[str]:
    with postgres.session(settings.database()) as session:
        return list(session.scalars(select(Burst.burst_id)))


def test_ctrl_c_drains_a_burst_in_the_foreground(
    start: Callable[..., Process], server: Process, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    command = (
        "burst",
        "start",
        "--local",
        "--workers",
        "1",
        "--concurrency",
        "1",
        "--runtime",
        "90s",
        "--grace",
        "20s",
    )
    process = start(*command, env=env | {"HOWL_HOME": str(tmp_path)})
    eventually(lambda: "1 of 1 workers registered" in process.output)
    process.signal(signal.SIGINT)
    assert process.wait() == 0, process.output
    (burst_id,) = burst_ids(settings)
    assert f"local-{burst_id[:8]}-1" in process.output.splitlines()[-1]
    assert row(settings, burst_id).ended_at is not None
    assert not running(burst_id)


def test_a_detached_burst_goes_on_after_its_command_and_is_drained_by_a_signal(
    server: Process, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    asked = ("--workers", "1", "--concurrency", "1", "--runtime", "90s", "--grace", "20s", "--tags", "a,b", "--detach")
    done = subprocess.run(
        (*CLI, "burst", "start", "--local", *asked),
        env=env | {"HOWL_HOME": str(tmp_path)}, timeout=60, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (burst_id,) = burst_ids(settings)
    keeper = row(settings, burst_id)
    try:
        assert burst_id in done.stdout
        assert f"kill {keeper.run['pid']}" in done.stderr
        assert keeper.request["tags"] == ["a", "b"]
        assert running(burst_id)
    finally:
        os.kill(keeper.run["pid"], signal.SIGTERM)
    eventually(lambda: row(settings, burst_id).ended_at)
    assert not running(burst_id)


def test_a_burst_on_github_is_declined_with_what_there_is_instead(env: dict[str, str]) -> None:
    done = subprocess.run((*CLI, "burst", "start"), env=env, timeout=30, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--local" in done.stderr


def running(burst_id: str) -> list[int]:
    """Processes that belong to a burst's workers."""
    mark = f"local-{burst_id[:8]}-".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile
