"""`howl tasks`, `howl workers` and `howl analytics`: what is recorded, printed."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from howl.cli import main
from howl.models import Task, TaskEvent, Worker

TASK_ID = "1f0c9a00-0000-4000-8000-000000000001"
LONG_NAME = "acceptance.of_everything.in_one_very_long_name_of_a_task"


@pytest.fixture
def recorded(session):
    """One worker that is active, one that is not, and one failed task whose words come from far away."""
    now = datetime.now(UTC)
    session.add_all(
        [
            Worker(worker_id="w1", status="active", last_heartbeat_at=now, tags=["linux"]),
            Worker(worker_id="w0", status="offline"),
            Task(
                task_id=TASK_ID, name=LONG_NAME, queue="celery", status="failed", rank=3, worker_id="w1", runtime=312.0,
                kwargs={"url": "[red]x"}, error_type="ValueError", error_message="\x1b[2J no", traceback="line\n  [b]",
                finished_at=now,
            ),
            TaskEvent(task_id=TASK_ID, kind="failed", worker_id="w1"),
        ]
    )  # fmt: skip
    session.commit()


@pytest.fixture
def howl(env, recorded):
    """Run `howl …` on the record, on a terminal of so many columns; what it printed."""

    def _howl(*line, columns="80", status=0):
        answer = CliRunner().invoke(main, line, env=env | {"COLUMNS": columns})
        assert answer.exit_code == status, answer.output
        return answer.output

    return _howl


COMMANDS = [
    ("tasks", "list"),
    ("tasks", "show", "1f0c9a"),
    ("workers", "list"),
    ("workers", "show", "w1"),
    *(("analytics", kind) for kind in ("overview", "worker", "task", "queue", "burst")),
]


def test_what_is_printed_for_people_fits_80_columns(howl):
    for line in COMMANDS:
        assert max(len(text) for text in howl(*line).splitlines()) <= 80, line


def test_what_is_printed_for_programs_is_json(howl):
    for line in COMMANDS:
        assert json.loads(howl(*line, "--json")), line


def test_a_workers_words_cannot_steer_the_terminal(howl):
    assert "\\x1b[2J no" in howl("tasks", "list", columns="200")
    assert not [line for line in COMMANDS if "\x1b" in howl(*line, columns="200")]


def test_a_tasks_id_stands_in_the_list_whole(howl):
    assert TASK_ID in howl("tasks", "list")


def test_a_wide_terminal_also_shows_who_ran_a_task_and_how_long_it_took(howl):
    assert "w1" not in howl("tasks", "list")
    wide = howl("tasks", "list", columns="120")
    assert "w1" in wide
    assert "5 min 12 s" in wide


def test_a_task_is_shown_with_brackets_and_control_characters_as_text(howl):
    shown = howl("tasks", "show", "1f0c9a")
    assert "[red]x" in shown
    assert "[b]" in shown
    assert "\\x1b[2J no" in shown


def test_times_are_iso_with_a_zone_for_programs(howl):
    (task,) = json.loads(howl("tasks", "list", "--json"))
    assert datetime.fromisoformat(task["queued_at"]).tzinfo is not None


def test_an_unknown_task_is_one_sentence_and_status_1(howl):
    assert howl("tasks", "show", "nothing", status=1).startswith("Error: No task 'nothing' is recorded")


def test_only_workers_that_are_there_are_listed_unless_all_are_asked_for(howl):
    assert [worker["worker_id"] for worker in json.loads(howl("workers", "list", "--json"))] == ["w1"]
    everyone = json.loads(howl("workers", "list", "--all", "--json"))
    assert {worker["worker_id"] for worker in everyone} == {"w0", "w1"}


def test_an_empty_list_says_so_for_people_and_is_empty_for_programs(howl):
    assert howl("tasks", "list", "--status", "dead") == "No such tasks.\n"
    assert howl("tasks", "list", "--status", "dead", "--json") == "[]\n"


def test_an_answer_is_coloured_on_a_terminal_only(howl, env):
    listing = [sys.executable, "-m", "howl.cli", "tasks", "list"]
    assert "\x1b[31mfailed" in on_a_terminal(listing, env | {"TERM": "xterm"})
    assert "\x1b" not in howl("tasks", "list")


def test_no_error_about_the_database_names_its_password(settings, env):
    wrong = f"postgresql://howl:sekret@127.0.0.1:{urlsplit(settings.database()).port}/mcp_manager"
    answer = CliRunner().invoke(main, ["tasks", "list"], env=env | {"HOWL_DATABASE_URL": wrong})
    assert (answer.exit_code, "does not answer" in answer.output) == (1, True)
    assert "sekret" not in answer.output


def on_a_terminal(argv, env):
    """Everything a program prints on a terminal of its own."""
    ours, its = pty.openpty()
    with subprocess.Popen(argv, env=env, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        printed = b""
        with contextlib.suppress(OSError):  # Linux's way of saying that the terminal has no other end any more
            while part := os.read(ours, 4096):
                printed += part
        os.close(ours)
        assert process.wait(30) == 0, printed
    return printed.decode()
