"""Workers in jobs that are cancelled, run out of time or lose their machine: nothing is lost, nothing done twice."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from benchmarks.faults.ground import Account, Ground, children
from howl.bursts import budget, records
from howl.bursts.budget import Run
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections import postgres
from howl.embedded.stack import Stack
from howl.models import Worker
from howl.queries.records import show_task
from tests.helpers.runner import TO_TERM, Runner
from tests.helpers.support import Process, eventually

#: Seconds of a lease: a task that is elsewhere before was put back by its worker, not by the keeper.
LEASE = 30.0
#: Of one that shall run out: long enough for a worker that is not heard of for a while, on a busy machine.
SHORT_LEASE = 6.0
#: Seconds within which tasks of a cancelled job have begun elsewhere, once it is gone.
SOON = 2.0


@pytest.fixture
def make_ground(stack: Stack, settings: Settings, tmp_path: Path) -> Iterator[Callable[[float], Ground]]:
    """Servers and a namespace in which a lease lasts so many seconds."""
    made: list[Ground] = []

    def _make(lease: float) -> Ground:
        told = settings.model_copy(update={"lease": lease, "push_again_after": 60.0})
        made.append(Ground(stack, told, tmp_path).__enter__())
        made[-1].server()
        return made[-1]

    yield _make
    for ground in made:
        ground.__exit__()


@pytest.fixture
def ground(make_ground: Callable[[float], Ground]) -> Ground:
    """With leases too long to matter."""
    return make_ground(LEASE)


@pytest.fixture
def runner(ground: Ground, tmp_path: Path) -> Iterator[Runner]:
    """One machine of GitHub's, gone when the test ends."""
    made = Runner(tmp_path / "runner", ground.environment(database=False))
    yield made
    made.vanish()


def at_work(ground: Ground, runner: Runner, *options: str) -> Process:
    """A step that has become a worker, which is ready."""
    return ground.awaited(runner.begin(f"echo Working\nexec howl worker {' '.join(options)}\n"), " ready.")


def gated(ground: Ground, count: int) -> Path:
    """Tasks that run until the file exists; returns when all of them do."""
    gate = published(ground, count)
    eventually(lambda: sum(ground.diary.starts().values()) == count)
    return gate


def published(ground: Ground, count: int) -> Path:
    """The same, and whoever starts a worker may wait for them."""
    gate = ground.folder / "gate"
    ground.send("tests.gated", str(ground.diary.path), str(gate), count=count)
    return gate


def is_whole(account: Account) -> bool:
    """Nothing lost, recorded twice, left over, or run again that no fault accounts for."""
    return (account.lost, account.twice, account.stranded, account.extra, account.unseen) == (0, 0, 0, 0, 0)


@pytest.mark.alone
@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("count", [1, 8, 64])
def test_tasks_of_a_cancelled_job_begin_elsewhere_at_once(
    count: int, pool: str, ground: Ground, runner: Runner
) -> None:
    step = at_work(ground, runner, "--pool", pool, "--concurrency", str(count))
    gate = gated(ground, count)
    ground.worker("other", "--pool", "threads", "--concurrency", str(count))
    ground.struck("worker-4711-1-1", {step.pid, *children(step.pid)})
    # A worker cannot tell how long GitHub waits: once as long as it does is enough.
    runner.cancel(TO_TERM if count == 64 else 1.0)
    eventually(lambda: sum(ground.diary.starts().values()) == 2 * count, timeout=SOON)
    gate.touch()
    account = ground.account()
    assert is_whole(account), account
    assert account.started_again == account.running_at_faults == count
    assert step.popen.returncode == 0
    assert "tests.gated" in runner.summary.read_text()


def test_a_task_of_a_cancelled_job_says_with_which_worker_it_was_lost(
    ground: Ground, tmp_path: Path, settings: Settings
) -> None:
    run = Run(repository="octo/site", run_id="4711")
    with postgres.session(settings.database()) as session:
        burst_id = budget.ask(session, settings, BurstRequest(workers=2, runtime=600.0), run).burst_id
    runner = Runner(tmp_path / "second", ground.environment(database=False), index=2)
    try:
        at_work(ground, runner, "--concurrency", "1")
        gate = gated(ground, 1)
        runner.cancel(1.0)
    finally:
        runner.vanish()
    with postgres.session(settings.database()) as session:
        records.conclude(session, burst_id, "cancelled")  # as GitHub will tell
    gate.touch()
    ground.worker("other", "--concurrency", "1")
    ground.wait_for_ends(30.0)
    with postgres.session(settings.database()) as session:
        told = show_task(session, ground.task_ids[0])
    assert (told["status"], told["worker_id"]) == ("succeeded", "other")
    assert told["lost_with"] == ["run 4711, attempt 1, worker 2: cancelled"]


def test_a_job_s_time_out_leaves_alone_what_ends_in_time_and_hands_on_what_waited(
    ground: Ground, runner: Runner
) -> None:
    step = at_work(ground, runner, "--concurrency", "2", "--runtime", "6h")
    gate = gated(ground, 2)
    ground.send("bench.diary", str(ground.diary.path), 0.1, count=6)
    ground.send("bench.diary", str(ground.diary.path), 0.1, count=2, countdown=20.0)
    eventually(lambda: len(ground.held("worker-4711-1-1")) >= 2)
    step.signal(signal.SIGINT)
    ground.worker("other", "--concurrency", "2")
    waited = ground.task_ids[2:8]
    eventually(lambda: len(ground.ended(waited)) == 6)  # while the first two run on
    gate.touch()
    assert step.wait() == 0, step.output
    account = ground.account()
    assert is_whole(account), account
    assert account.started_again == 0


def test_tasks_of_a_machine_that_vanishes_run_elsewhere_when_its_leases_run_out(
    make_ground: Callable[[float], Ground], tmp_path: Path
) -> None:
    ground = make_ground(SHORT_LEASE)
    runner = Runner(tmp_path / "runner", ground.environment(database=False))
    step = at_work(ground, runner, "--concurrency", "4")
    gate = gated(ground, 4)
    ground.struck("worker-4711-1-1", {step.pid, *children(step.pid)})
    runner.vanish()
    ground.worker("other", "--concurrency", "4")
    gate.touch()
    account = ground.account()
    assert is_whole(account), account
    assert account.started_again == 4


def test_two_bursts_at_once_share_the_work_and_are_told_apart(
    ground: Ground, runner: Runner, tmp_path: Path, settings: Settings
) -> None:
    second = Runner(tmp_path / "second", ground.environment(database=False), run_id="4712")
    try:
        steps = [at_work(ground, each, "--concurrency", "2") for each in (runner, second)]
        ground.publish(100, 0.05)
        account = ground.account()
        assert is_whole(account), account
        assert account.started_again == 0
        assert [step.popen.poll() for step in steps] == [None, None]
        known = {
            "worker-4711-1-1": ("github-actions", "4711", "1"),
            "worker-4712-1-1": ("github-actions", "4712", "1"),
        }
        eventually(lambda: origins(settings) == known)  # of them NATS tells, of their tasks Redis
    finally:
        second.vanish()


def test_a_worker_at_its_deadline_hands_on_tasks_whose_time_has_not_come(ground: Ground, runner: Runner) -> None:
    step = at_work(ground, runner, "--concurrency", "1", "--runtime", "25s", "--grace", "15s")
    ground.send("bench.diary", str(ground.diary.path), 0.1, count=5, countdown=30.0)
    eventually(lambda: len(ground.held("worker-4711-1-1")) == 5)
    assert step.wait() == 0, step.output
    assert "deadline is 15 s away" in step.output
    assert "The deadline has come" not in step.output  # nothing ran, so nobody waited for it
    ground.worker("other", "--concurrency", "1")
    account = ground.account()
    assert is_whole(account), account
    assert account.started_again == 0


def test_an_idle_worker_leaves_but_never_one_whose_task_runs(ground: Ground, runner: Runner) -> None:
    gate = published(ground, 1)  # or it could have left before there was one
    step = at_work(ground, runner, "--concurrency", "1", "--idle-exit", "2s")
    eventually(lambda: sum(ground.diary.starts().values()) == 1)
    time.sleep(3)  # longer than it would idle
    assert step.popen.poll() is None
    assert not ground.ended()
    gate.touch()
    assert step.wait() == 0, step.output
    assert "No task for 2 s" in step.output
    assert is_whole(ground.account())


def origins(settings: Settings) -> dict[str, tuple[str | None, str, str]]:
    """Where each worker comes from: its origin, its run and its place in that."""
    with postgres.session(settings.database()) as session:
        rows = session.scalars(select(Worker))
        return {row.worker_id: (row.origin, row.run["run_id"], row.run["index"]) for row in rows}
