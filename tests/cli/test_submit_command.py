"""`howl submit`, and cancelling what was submitted: real processes, as a person or a script would start them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from howl.cli.submit import _exit_status
from howl.connections import postgres
from howl.models import Task, Worker
from tests.helpers.support import PATIENCE, eventually, run_program

HOWL = str(Path(sys.executable).with_name("howl"))


@pytest.fixture
def howl(env):
    """Run `howl …` to its end."""

    def _howl(*line, stdin="", **given):
        return run_program([HOWL, *line], env | given, stdin=stdin, timeout=60)

    return _howl


@pytest.fixture
def submitted(howl):
    """Submit a task that nobody waits for; its id."""

    def _submitted(*line, **given):
        answer = howl("submit", *line, **given)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    return _submitted


def number_of_tasks(settings):
    with postgres.session(settings.database()) as opened:
        return opened.scalar(select(func.count()).select_from(Task))


def test_everything_asked_for_is_recorded_and_the_id_is_printed(submitted, task_row):
    task_id = submitted(
        "tests.add", "--args", '{"x": 1, "y": 2}', "--queue", "slow", "--priority", "3", "--time-limit", "2m",
        "--expires", "1h", "--idempotency-key", "once", "--description", "a sum",
    )  # fmt: skip
    row = task_row(task_id)
    assert (row.name, row.args, row.kwargs, row.status) == ("tests.add", [], {"x": 1, "y": 2}, "queued")
    assert (row.queue, row.priority, row.time_limit, row.description) == ("slow", 3, 120.0, "a sum")
    assert (row.idempotency_key, round((row.expires_at - row.queued_at).total_seconds() / 60)) == ("once", 60)
    assert row.submitted_by.startswith("cli:")


def test_the_same_idempotency_key_gives_the_same_task(submitted):
    ids = {submitted("tests.noop", "--idempotency-key", "once") for _ in range(2)}
    assert len(ids) == 1


def test_arguments_are_read_from_a_file_or_from_standard_input(submitted, task_row, tmp_path):
    file = tmp_path / "arguments.json"
    file.write_text('["from a file"]')
    assert task_row(submitted("tests.echo", "--args", f"@{file}")).args == ["from a file"]
    assert task_row(submitted("tests.echo", "--args", "-", stdin='["from stdin"]')).args == ["from stdin"]


@pytest.mark.parametrize(
    ("line", "kwargs"),
    [
        (["web.fetch", "url=https://example.org/?a=b", "limit=5"], {"url": "https://example.org/?a=b", "limit": 5}),
        (["command.run", 'argv=["uname", "-a"]', "cwd=5", "timeout=2.5"],
         {"argv": ["uname", "-a"], "cwd": "5", "timeout": 2.5}),
        (["tests.add", "x=1", "--args", '{"y": 2}'], {"x": 1, "y": 2}),
        (["tests.echo", "value=just words"], {"value": "just words"}),
    ],
)  # fmt: skip
def test_arguments_may_be_written_by_name(submitted, task_row, line, kwargs):
    assert task_row(submitted(*line)).kwargs == kwargs


@pytest.mark.parametrize(
    ("line", "status", "sentence"),
    [
        (["tests.add", "x"], 2, "Write arguments as NAME=VALUE"),
        (["tests.add", "x=1", "x=2"], 2, "each name once"),
        (["tests.add", "x=1", "--args", '{"x": 2, "y": 2}'], 2, "x is given twice"),
        (["tests.noop", "--check"], 2, "--check goes with --wait"),
        (["command.run", "--args", '["uname"]'], 1, 'did you mean [["uname"]]?'),
        (["command.run", "--args", '["uname", "-a"]'], 1, 'did you mean [["uname", "-a"]]?'),
        (["command.run", "--args", '["a", "b", "c", "d", "e", "f"]'], 1, "did you mean [["),
    ],
)
def test_a_slip_in_arguments_is_told_with_what_may_have_been_meant(howl, settings, line, status, sentence):
    answer = howl("submit", *line)
    assert (answer.returncode, sentence in answer.stderr) == (status, True), answer.stderr
    assert number_of_tasks(settings) == 0


def test_a_commands_own_exit_status_is_that_of_howl_where_it_is_checked(howl, server, start_worker):
    start_worker("w1", "--concurrency", "1", env={"HOWL_ALLOW_COMMANDS": "1"})
    answer = howl("submit", "command.run", 'argv=["sh", "-c", "exit 7"]', "--wait", "--check")
    assert answer.returncode == 7, answer.stderr
    assert answer.stdout.startswith("exit_status: 7\n"), "as the task told it: JSONB would begin with pid"
    answer = howl("submit", "tests.echo", "value=1", "--wait", "--check")
    assert (answer.returncode, "has no exit_status" in answer.stderr) == (1, True), answer.stderr


def test_a_signal_that_ended_a_command_is_told_as_a_shell_does():
    assert [_exit_status({"exit_status": status}) for status in (0, 7, -9)] == [0, 7, 137]


def test_whoever_submits_to_a_queue_that_nobody_serves_is_told(howl, session):
    answer = howl("submit", "tests.noop", "--queue", "nobodys")
    assert (answer.returncode, len(answer.stdout.split())) == (0, 1)
    assert "No active worker takes tasks from queue 'nobodys'" in answer.stderr
    session.add(Worker(worker_id="w1", queues=["nobodys"]))
    session.commit()
    assert howl("submit", "tests.noop", "--queue", "nobodys").stderr == ""
    assert howl("submit", "tests.noop", "--worker", "w1").stderr == ""
    assert json.loads(howl("queues", "--json").stdout)["unserved"] == []
    session.get(Worker, "w1").status = "offline"
    session.commit()
    assert json.loads(howl("queues", "--json").stdout)["unserved"] == ["nobodys", "worker.w1"]


def test_the_id_is_json_for_programs(howl, task_row):
    assert task_row(json.loads(howl("submit", "tests.noop", "--json").stdout)["task_id"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["tests.ad"], "did you mean 'tests.add'?"),
        (["tests.add", "--args", "[1]"], "missing a required argument: 'y'"),
        (["tests.add", "--args", '["one", 2]'], "x does not fit"),
        (["tests.noop", "--worker", "nobody"], "Worker 'nobody' is not active"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence_and_nothing_is_recorded(howl, settings, line, sentence):
    answer = howl("submit", *line)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("Error: ")
    assert sentence in answer.stderr
    assert number_of_tasks(settings) == 0


def test_the_tasks_that_can_be_submitted_are_listed_with_what_they_take(howl):
    listed = {task["name"]: task for task in json.loads(howl("submit", "--list", "--json").stdout)}
    assert listed["tests.add"] == {"name": "tests.add", "signature": "(x: int, y: int)", "summary": "Add two numbers."}
    assert "command.run" in listed
    assert not [name for name in listed if name.startswith(("celery.", "howl."))]
    assert "tests.add" in howl("submit", "--list").stdout


def test_waiting_prints_the_result_alone_on_standard_output(howl, server, start_worker):
    start_worker("w1", "--concurrency", "1")
    answer = howl("submit", "tests.add", "--args", "[2, 3]", "--wait")
    assert (answer.returncode, answer.stdout) == (0, "5\n")
    assert answer.stderr.startswith("Task ")
    task = json.loads(howl("submit", "tests.echo", "--args", '[{"a": [1]}]', "--wait", "--json").stdout)
    assert (task["status"], task["result"], task["worker_id"]) == ("succeeded", {"a": [1]}, "w1")


def test_waiting_for_a_task_that_fails_tells_its_error_and_ends_with_status_1(howl, server, start_worker):
    start_worker("w1", "--concurrency", "1")
    answer = howl("submit", "tests.fail", "--args", '["no such luck"]', "--wait")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "failed: ValueError: no such luck" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_waiting_ends_in_time_and_the_task_goes_on(howl, settings, session):
    answer = howl("submit", "tests.noop", "--wait", "--timeout", "1s")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "Not ended within 1 s; the task goes on" in answer.stderr
    assert session.scalar(select(Task.status)) == "queued"


def test_ctrl_c_ends_the_waiting_and_not_the_task(env, tmp_path, session):
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        waiting = subprocess.Popen([HOWL, "submit", "tests.noop", "--wait"], env=env, stderr=stderr)
    eventually(lambda: "Task " in said.read_text() or waiting.poll() is not None)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(PATIENCE) == 1
    assert "No longer waiting; the task goes on" in said.read_text()
    assert session.scalar(select(Task.status)) == "queued"


def test_a_running_task_is_cancelled_once(howl, submitted, server, start_worker, task_row):
    start_worker("w1", "--concurrency", "1")
    task_id = submitted("tests.sleep", "--args", "[60]")
    eventually(lambda: task_row(task_id).status == "started")
    assert f"{task_id} was started and is being cancelled." in howl("tasks", "cancel", task_id[:8]).stdout
    eventually(lambda: task_row(task_id).status == "cancelled")
    assert "had ended already: cancelled." in howl("tasks", "cancel", task_id).stdout


def test_one_unknown_id_cancels_nothing(howl, submitted, server, start_worker, task_row):
    task_id = submitted("tests.noop")
    answer = howl("tasks", "cancel", task_id, "nothing-like-it")
    assert (answer.returncode, answer.stdout) == (1, "")
    start_worker("w1", "--concurrency", "1")
    eventually(lambda: task_row(task_id).status == "succeeded")


def test_a_task_that_redis_cannot_take_is_recorded_and_no_password_is_named(howl, settings):
    answer = howl("submit", "tests.noop", HOWL_REDIS_URL="redis://:sekret@127.0.0.1:1/0")
    assert answer.returncode == 1
    assert "is recorded, but Redis cannot take it now" in answer.stderr
    assert "sekret" not in answer.stderr
    assert number_of_tasks(settings) == 1
