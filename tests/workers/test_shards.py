"""command.shards: one call, many shards, one summary, whatever becomes of some of them."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.config import Settings
from howl.errors import CommandsNotAllowed, InvalidRequest
from howl.models import Task, Worker
from howl.outcomes import PART_STATUS
from howl.submission import TaskRequest, cancel, submit
from tests.helpers.support import Process, eventually
from tests.workers.conftest import Tree
from workers import sharding
from workers.command import run_shard, run_shards

#: A suite of two tests a shard, the second of which fails in shard 3; with a folder, four shards begin at once.
SUITE = """
import pathlib, sys, time
shard, junit, *folder = sys.argv[1:]
for each in map(pathlib.Path, folder):
    (each / f"began-{shard}").touch()
    while len(list(each.glob("began-*"))) < 4:
        time.sleep(0.05)
end = '<failure message="odd"/>' if shard == "3" else ""
with open(junit, "w") as file:
    file.write(f'<testsuite><testcase name="a" time="1"/><testcase name="b{shard}">{end}</testcase></testsuite>')
print("this is shard", shard)
sys.exit(shard == "3")
"""


def suite(*arguments: str) -> list[str]:
    return [sys.executable, "-c", SUITE, *(arguments or ("{shard}", "{junit}"))]


def shell(program: str) -> list[str]:
    return ["sh", "-c", program, "{shard}"]


# --- one shard, called directly --------------------------------------------------------------------------------------


def test_a_shard_is_told_its_number_in_its_arguments_and_variables_and_nothing_else_is_touched(tmp_path: Path):
    notes = tmp_path / "notes"
    program = 'printf "%s\\n" "$@" "$MINE" > notes'
    argv = ["sh", "-c", program, "sh", "{shard}/{shards}", "{}", "{other}", "${shard}", "{{shard}}", "{junit"]
    report = run_shard(argv, 2, 5, cwd=str(tmp_path), env={"MINE": "no. {shard}"})
    assert report["exit_status"] == 0
    assert notes.read_text().splitlines() == ["2/5", "{}", "{other}", "$2", "{2}", "{junit", "no. 2"]


def test_a_shards_report_counts_its_tests_and_names_those_that_failed():
    report = run_shard(suite(), 3, 8)
    assert (report["shard"], report["exit_status"], report["error"]) == (3, 1, None)
    assert report["tests"] == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0, "time": 1.0}
    assert report["failing"] == [{"name": "b3", "message": "odd"}]
    assert report["last_lines"] == "this is shard 3"
    assert json.loads(json.dumps(report)) == report


def test_a_warning_on_standard_error_hides_none_of_what_a_failing_shard_said():
    report = run_shard(shell("echo '1 failed: test_it'; echo 'an old option' >&2; exit 1"), 1, 2)
    assert report["last_lines"] == "1 failed: test_it\nan old option"


def test_a_failing_shard_that_said_very_much_on_both_streams_shows_the_end_of_each():
    report = run_shard(shell("seq -f 'out %06g' 9000; seq -f 'err %06g' 9000 >&2; exit 1"), 1, 2)
    assert "out 009000\nerr " in report["last_lines"]
    assert report["last_lines"].endswith("err 009000")
    assert len(report["last_lines"]) <= 2000


def test_without_a_wish_for_junit_no_file_is_missed():
    report = run_shard(shell("true"), 1, 2)
    assert (report["exit_status"], report["error"], report["tests"]) == (0, None, None)


def test_a_junit_file_may_be_asked_for_in_a_variable():
    argv = shell('echo "<testsuite><testcase/></testsuite>" > "$REPORT"')
    assert run_shard(argv, 1, 2, env={"REPORT": "{junit}"})["tests"]["tests"] == 1


@pytest.mark.parametrize(("program", "error"), [
    ("true {junit}", "No JUnit file was written."),
    ("mkfifo {junit}", "No JUnit file was written."),
    ("echo '<testsuite>' > {junit}", "The JUnit file is no XML that can be read"),
    ("echo '<!DOCTYPE x []><x/>' > {junit}", "The JUnit file declares a document type"),
])  # fmt: skip
def test_a_junit_file_that_cannot_be_read_is_the_shards_error(program: str, error: str):
    report = run_shard(shell(program), 1, 2)
    assert report["exit_status"] == 0
    assert report["error"].startswith(error)
    assert sharding.summary([report])["succeeded"] == 0


def test_a_shard_past_its_timeout_says_so_and_what_it_had_tested_counts(tmp_path: Path, time_out):
    program = "echo '<testsuite><testcase/></testsuite>' > {junit}; echo so far; touch ready; sleep 60"
    report = run_shard(shell(program), 1, 2, cwd=str(tmp_path), timeout=time_out((tmp_path / "ready").exists))
    assert report["exit_status"] is None
    assert "CommandTimedOut" in report["error"]
    assert "so far" in report["error"]
    assert report["tests"]["tests"] == 1


def test_a_program_that_does_not_exist_is_the_shards_error():
    assert "CommandNotStarted" in run_shard(["no-such-program", "{shard}"], 1, 2)["error"]


def test_a_shards_folder_is_gone_afterwards(tmp_path: Path):
    run_shard(shell('mkdir {junit}.d; dirname {junit} > "$0"; chmod 0 {junit}.d'), 1, 2, cwd=str(tmp_path))
    assert not Path((tmp_path / "1").read_text().strip()).exists()


def test_a_permanent_worker_runs_no_shard(owner_says: Callable[..., None]):
    owner_says(HOWL_WORKER_ORIGIN="server")
    with pytest.raises(CommandsNotAllowed, match="HOWL_ALLOW_COMMANDS=1"):
        run_shard(shell("true"), 1, 2)


@pytest.mark.parametrize("arguments", [
    {"argv": shell("true"), "shards": 0},
    {"argv": shell("true"), "shards": -1},
    {"argv": shell("true"), "shards": 10_000},
    {"argv": shell("true"), "shards": True},
    {"argv": shell("true"), "shards": "2"},
    {"argv": shell("true"), "shards": 2.0},
    {"argv": [], "shards": 1},
    {"argv": "pytest {shard}", "shards": 2},
    {"argv": ["echo", "{shard}", 1], "shards": 2},
    {"argv": ["echo", "{shard}", "\0"], "shards": 2},
    {"argv": shell("true"), "shards": 2, "env": ["{shard}"]},
    {"argv": shell("true"), "shards": 2, "env": {"A": 1}},
    {"argv": shell("true"), "shards": 2, "cwd": 5},
    {"argv": shell("true"), "shards": 2, "timeout": -1},
    {"argv": ["echo", "{shard}", "x" * 100_000], "shards": 256},
], ids=lambda value: repr(value)[:60])  # fmt: skip
def test_what_cannot_be_split_is_refused_before_anything_runs(arguments: dict[str, Any]):
    with pytest.raises(InvalidRequest):
        run_shards(**arguments)


def test_shards_that_would_all_do_the_same_are_refused():
    with pytest.raises(InvalidRequest, match=r"Write {shard} where it belongs in argv or env: all 4 shards"):
        run_shards(["pytest", "{shards}"], 4)


# --- what they come to -----------------------------------------------------------------------------------------------


def report_of(shard: int, **given: Any) -> dict[str, Any]:
    return {"shard": shard, "worker": "w1", "exit_status": 0, "duration": float(shard), "error": None,
            "last_lines": "", "tests": None, "failing": [], "failing_left_out": 0, **given}  # fmt: skip


def test_a_summary_adds_up_what_shards_report():
    tests = {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "time": 0.1}
    wrong = report_of(2, exit_status=1, tests=tests, failing=[{"name": "x", "message": "y"}], failing_left_out=7,
                      last_lines="1 failed")  # fmt: skip
    assert sharding.summary([report_of(1, tests=tests), wrong, report_of(3)]) == {
        "shards": 3,
        "succeeded": 2,
        "failed": [{"shard": 2, "worker": "w1", "exit_status": 1, "error": None, "last_lines": "1 failed"}],
        "exit_statuses": [0, 1, 0],
        "tests": {"tests": 6, "failures": 2, "errors": 0, "skipped": 2, "time": 0.2},
        "failing": [{"shard": 2, "name": "x", "message": "y"}],
        "failing_left_out": 7,
        "slowest": {"shard": 3, "duration": 3.0},
        "duration": 6.0,
    }


def test_a_shard_that_is_dead_has_its_place_in_the_summary():
    dead = {PART_STATUS: "dead", "worker_id": None, "error_type": "howl.errors.TaskDied", "error_message": "too often"}
    summary = sharding.summary([report_of(1), dead])
    assert (summary["succeeded"], summary["exit_statuses"]) == (1, [0, None])
    assert summary["failed"][0]["shard"] == 2
    assert summary["failed"][0]["error"] == "dead: howl.errors.TaskDied: too often"


def test_a_summary_of_the_most_and_worst_shards_fits_an_outcome():
    program = (
        "import sys\n"
        "case = f\"<testcase name='é'><failure message='{chr(1234) * 400}'/></testcase>\"\n"
        "open(sys.argv[2], 'w', encoding='utf-8').write(f'<x>{case * 900}</x>')\n"
        "for n in range(500): print(chr(0x1f600) * 500)\n"
        "sys.exit(1)"
    )
    argv = [sys.executable, "-X", "utf8", "-c", program, "{shard}", "{junit}"]
    report = run_shard(argv, 1, sharding.MOST)
    assert report["tests"]["failures"] == 900
    assert report["last_lines"]
    summary = sharding.summary([{**report, "shard": shard} for shard in range(1, sharding.MOST + 1)])
    assert len(json.dumps(summary)) < 1 << 20


# --- real workers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """The server looks often for leases that ran out."""
    return env | {"HOWL_LEASE": "2"}


@pytest.fixture(params=["prefork", "threads"])
def two_workers(
    request: pytest.FixtureRequest, server: Process, start_worker: Callable[..., Process]
) -> dict[str, Process]:
    """What w1 held is free again two seconds after its death; a pause of w2 costs it nothing."""
    options = ("--pool", request.param, "--concurrency", "2")
    return {
        name: start_worker(name, *options, env={"HOWL_LEASE": lease}) for name, lease in (("w1", "2"), ("w2", "30"))
    }


@pytest.fixture
def call(session: Session, app: Celery) -> Callable[..., str]:
    """Submit command.shards as people do; returns the task's id."""

    def _call(argv: list[str], shards: int, **given: Any) -> str:
        return submit(
            TaskRequest(name="command.shards", kwargs={"argv": argv, "shards": shards, **given}), session, app
        )

    return _call


@pytest.fixture
def ended(task_row: Callable[[str], Task | None]) -> Callable[[str], Task]:
    return lambda task_id: eventually(lambda: (row := task_row(task_id)) and row.finished_at and row)


def parts_of(task_id: str, session: Session) -> list[Task]:
    session.rollback()  # to see what is new
    return list(session.scalars(select(Task).where(Task.parent_id == task_id, Task.name == "command.shard")))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "pids")


def test_eight_shards_on_two_workers_come_to_one_summary_under_the_id_that_was_submitted(
    two_workers: dict[str, Process], call: Callable[..., str], ended: Callable[[str], Task], session: Session,
    tmp_path: Path,
):  # fmt: skip
    task_id = call(suite("{shard}", "{junit}", str(tmp_path)), 8)
    row = ended(task_id)
    assert (row.name, row.status) == ("command.shards", "succeeded"), row.error_message
    assert (row.result["shards"], row.result["succeeded"]) == (8, 7)
    assert row.result["exit_statuses"] == [0, 0, 1, 0, 0, 0, 0, 0]
    (failed,) = row.result["failed"]
    assert (failed["shard"], failed["last_lines"]) == (3, "this is shard 3")
    assert row.result["tests"] == {"tests": 16, "failures": 1, "errors": 0, "skipped": 0, "time": 8.0}
    assert row.result["failing"] == [{"shard": 3, "name": "b3", "message": "odd"}]
    parts = parts_of(task_id, session)
    assert sorted(part.args[1] for part in parts) == list(range(1, 9))
    assert {part.worker_id for part in parts} == {"w1", "w2"}


def test_a_worker_that_is_killed_in_the_middle_loses_no_shard(
    two_workers: dict[str, Process], call: Callable[..., str], ended: Callable[[str], Task], tmp_path: Path
):
    wait = 'echo "$0" >> begun; until [ -e gate ]; do sleep 0.1; done; exit $((${0} == 3))'
    begun = tmp_path / "begun"
    task_id = call(shell(wait), 8, cwd=str(tmp_path))
    eventually(lambda: begun.exists() and len(begun.read_text().splitlines()) == 4)  # two on each
    two_workers["w1"].signal(signal.SIGKILL)
    two_workers["w1"].wait()
    (tmp_path / "gate").touch()
    row = ended(task_id)
    assert row.result["exit_statuses"] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert row.result["succeeded"] == 7
    assert len(begun.read_text().splitlines()) == 10, "the two that died have begun again"


def test_shards_that_are_cancelled_or_run_out_of_time_are_in_the_summary_of_the_others(
    two_workers: dict[str, Process], call: Callable[..., str], ended: Callable[[str], Task], tmp_path: Path,
    session: Session, app: Celery,
):  # fmt: skip
    wait = 'echo "$0" >> begun; [ "$0" -gt 2 ] || sleep 60'
    task_id = call(shell(wait), 4, cwd=str(tmp_path), timeout=8)
    eventually(lambda: (tmp_path / "begun").exists() and "1\n" in (tmp_path / "begun").read_text())
    first = eventually(lambda: [part for part in parts_of(task_id, session) if part.args[1] == 1])
    cancel(first[0].task_id, session, app)
    summary = ended(task_id).result
    assert summary["exit_statuses"] == [None, None, 0, 0]
    cancelled, late = (failed["error"] for failed in summary["failed"])
    assert cancelled.startswith("cancelled: ")
    assert late.startswith("CommandTimedOut: ")


def test_the_tasks_own_time_limit_holds_for_each_shard(
    two_workers: dict[str, Process], ended: Callable[[str], Task], session: Session, app: Celery
):
    kwargs = {"argv": shell('[ "$0" = 1 ] || sleep 60'), "shards": 2}
    row = ended(submit(TaskRequest(name="command.shards", kwargs=kwargs, time_limit=8), session, app))
    assert row.result["exit_statuses"] == [0, None]
    assert "TimeLimitExceeded" in row.result["failed"][0]["error"]


def test_cancelling_the_whole_cancels_its_shards_and_ends_their_programs(
    two_workers: dict[str, Process], call: Callable[..., str], ended: Callable[[str], Task], tree: Tree,
    session: Session, app: Celery, settings: Settings,
):  # fmt: skip
    task_id = call([*tree.argv(), "{shard}"], 1)
    eventually(tree.is_complete)
    eventually(lambda: parts_of(task_id, session))
    cancel(task_id, session, app)
    assert ended(task_id).status == "cancelled"
    eventually(tree.is_gone)
    eventually(lambda: [part.status for part in parts_of(task_id, session)] == ["cancelled"])
    time.sleep(0.5)  # for a summary that nobody wants any more
    assert ended(task_id).status == "cancelled"


def test_shards_go_where_the_task_went(
    two_workers: dict[str, Process], ended: Callable[[str], Task], session: Session, app: Celery, settings: Settings,
    worker_row: Callable[[str], Worker | None],
):  # fmt: skip
    kwargs = {"argv": shell("true"), "shards": 3}
    request = TaskRequest(name="command.shards", kwargs=kwargs, worker_id="w2", priority=3)
    eventually(lambda: (row := worker_row("w2")) and row.status == "active")
    task_id = submit(request, session, app)
    assert ended(task_id).result["succeeded"] == 3
    assert {part.worker_id for part in parts_of(task_id, session)} == {"w2"}
    assert {part.queue for part in parts_of(task_id, session)} == {"worker.w2"}
    assert not app.backend.redis.exists(settings.key("_kombu.binding.worker.w2"))
