"""Time limits and cancelling hold where no process can be ended: a thread's task that waits asks for itself."""

import asyncio

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from howl.outcomes import FINAL_STATUSES
from howl.worker.task import time_limits
from tests.helpers.crew import CELERY, said
from tests.helpers.support import eventually
from tests.workers.conftest import Tree


@pytest.fixture(scope="module", params=["threads", "solo"])
def crew(request, enlist):
    return enlist(request.param)


@pytest.fixture
def threads(crew):
    """A crew that hears remote control while its tasks run."""
    if crew.pool != "threads":
        pytest.skip("a solo worker hears nothing while it works")
    return crew


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "pids")


def run_command(crew, argv, **options):
    return crew.app.send_task("command.run", args=[argv], **options).id


def ends(crew, task_id):
    return [kind for kind in crew.kinds(task_id) if kind in FINAL_STATUSES]


def test_a_hard_time_limit_fails_a_command_as_it_does_in_a_process(crew, tree):
    task_id = run_command(crew, tree.argv(), time_limit=4)
    row = crew.ended(task_id)
    assert (row.status, row.error_type) == ("failed", "billiard.exceptions.TimeLimitExceeded")
    assert "4" in row.error_message
    assert tree.is_gone()
    assert ends(crew, task_id) == ["failed"]


def test_a_soft_time_limit_ends_a_command_and_the_worker_goes_on(crew, tree):
    task_id = run_command(crew, tree.argv(), soft_time_limit=4)
    assert crew.ended(task_id).error_type == "billiard.exceptions.SoftTimeLimitExceeded"
    assert tree.is_gone()
    assert crew.ended(run_command(crew, ["echo", "well"])).result["stdout"] == "well\n"


def test_a_command_in_time_is_left_alone(crew):
    row = crew.ended(run_command(crew, ["sleep", "0.2"], soft_time_limit=30, time_limit=40))
    assert row.result["exit_status"] == 0


def test_the_limits_of_one_run_are_not_those_of_the_next(crew):
    crew.ended(run_command(crew, ["sleep", "30"], time_limit=0.5))
    for _ in range(2):  # each thread has had one of them
        assert crew.ended(run_command(crew, ["sleep", "0.7"])).status == "succeeded"


def test_a_cancelled_command_ends_with_its_tree_and_is_recorded_once(crew, tree):
    task_id = run_command(crew, tree.argv())
    eventually(tree.is_complete)
    crew.app.control.revoke(task_id, terminate=True)  # the loop of a solo worker hears nothing: its turn does
    assert crew.ended(task_id).status == "cancelled"
    assert tree.is_gone()
    assert ends(crew, task_id) == ["cancelled"]


def test_a_workers_own_time_limit_holds_for_tasks_that_have_none(threads, tree):
    options = "-A howl worker -P threads -c 1 -n limited --time-limit 1 -Q short -l INFO"
    env = {name: value for name, value in threads.env.items() if name != "HOWL_DATABASE_URL"}
    worker = threads.run(*options.split(), env=env, program=CELERY)
    said(worker, " ready.")
    row = threads.ended(run_command(threads, tree.argv(), queue="short"))
    assert (row.worker_id, row.error_type) == ("limited", "billiard.exceptions.TimeLimitExceeded")


# --- the limits alone ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """The second it is, for whoever has limits: it moves when the test says so."""
    moments = [0.0]
    monkeypatch.setattr(time_limits, "monotonic", lambda: moments[-1])
    return moments


@pytest.fixture
def running(clock):
    """`running(soft, hard)`: from now on this test is a run with these limits."""
    yield lambda soft=None, hard=None: time_limits.begin(clock[-1], soft, hard)
    time_limits.end()


def test_outside_a_run_nothing_is_limited():
    time_limits.check()
    assert time_limits.patience() == time_limits.TICK


def test_a_soft_limit_is_said_once_and_a_hard_one_again_and_again(running, clock):
    running(soft=0.25, hard=0.75)
    time_limits.check()
    clock.append(time_limits.patience())
    with pytest.raises(SoftTimeLimitExceeded):
        time_limits.check()
    time_limits.check()
    clock.append(clock[-1] + time_limits.patience())
    for _ in range(2):
        with pytest.raises(time_limits.OutOfTime):
            time_limits.check()


def test_a_run_waits_no_longer_than_its_next_limit(running):
    running(soft=0.2, hard=100)
    assert 0 < time_limits.patience() <= 0.2


def test_a_cancelled_run_hears_of_it_whatever_its_limits(running, clock):
    running(soft=0.001).cancel()
    clock.append(1.0)
    with pytest.raises(time_limits.Cancelled):
        time_limits.check()


def test_what_is_awaited_beyond_the_limit_is_cancelled(running, clock):
    running(hard=0.1)
    ended = []

    async def work():
        clock.append(0.1)
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    with pytest.raises(time_limits.OutOfTime):
        asyncio.run(time_limits.within(work()))
    assert ended == [True]


def test_what_is_awaited_in_time_is_returned_and_its_errors_raised(running):
    running(hard=30)
    assert asyncio.run(time_limits.within(asyncio.sleep(0, "there"))) == "there"

    async def fail():
        raise ValueError("as told")

    with pytest.raises(ValueError, match="as told"):
        asyncio.run(time_limits.within(fail()))
