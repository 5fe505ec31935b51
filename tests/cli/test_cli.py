"""The `howl` command as a whole: what it says of itself, and how fast."""

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from howl import __version__
from howl.cli import COMMANDS, main

LOADED = "import json, sys; {}; print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"


def modules_after(statement, env=None):
    """Top-level names of all modules a fresh interpreter has after the statement."""
    answer = subprocess.run([sys.executable, "-c", LOADED.format(statement)], capture_output=True, check=True, env=env)
    return set(json.loads(answer.stdout.splitlines()[-1]))


def leaves(command, path=("howl",)):
    """Every command that does something, with the words that lead to it."""
    if not isinstance(command, click.Group):
        return [(" ".join(path), command)]
    context = click.Context(command)
    names = command.list_commands(context)
    return [leaf for name in names for leaf in leaves(command.get_command(context, name), (*path, name))]


ALL_LEAVES = leaves(main)


def test_help_comes_in_less_than_300_ms():
    """Of processor time, which other tests do not take away."""
    howl = [sys.executable, "-m", "howl.cli", "--help"]
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run(howl, capture_output=True, check=True)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    assert 0 < min(times) < 0.3


def test_help_loads_nothing_that_is_slow():
    shown = "from click.testing import CliRunner; from howl.cli import main; CliRunner().invoke(main, ['--help'])"
    loaded = modules_after(shown)
    assert "click" in loaded
    assert not loaded & {"celery", "kombu", "pydantic", "sqlalchemy", "rich", "redis"}


def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_is_for_who_asks(monkeypatch):
    def surprise():
        raise KeyError("postgresql://howl:secret-word@127.0.0.1/x \x1b[2J")

    monkeypatch.setattr("howl.cli.tasks.load_settings", surprise)
    told = CliRunner().invoke(main, ["tasks", "list"])
    assert (told.exit_code, told.output.count("\n")) == (1, 1)
    assert "`howl tasks` met what nobody foresaw (KeyError: " in told.output
    assert "secret-word" not in told.output
    assert "\x1b" not in told.output
    asked = CliRunner().invoke(main, ["tasks", "list"], env={"HOWL_TRACEBACK": "1"})
    assert isinstance(asked.exception, KeyError)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_help_says_of_a_command_begins_what_the_command_says_of_itself(name):
    command = main.get_command(click.Context(main), name)
    assert command.get_short_help_str(limit=100).startswith(COMMANDS[name].rstrip("."))


@pytest.mark.parametrize(("path", "command"), ALL_LEAVES, ids=[path for path, _ in ALL_LEAVES])
def test_the_help_of_every_command_has_an_example_of_it(path, command):
    examples = (command.help or "").partition("Examples:")[2]
    assert path in examples


@pytest.mark.parametrize(("path", "command"), ALL_LEAVES, ids=[path for path, _ in ALL_LEAVES])
def test_the_help_of_every_command_fits_80_columns_but_for_examples(path, command):
    shown = CliRunner().invoke(main, [*path.split()[1:], "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert not [line for line in shown.output.splitlines() if len(line) > 80 and " howl " not in line]


def test_version_is_printed():
    assert CliRunner().invoke(main, ["--version"]).output == f"howl {__version__}\n"


def test_a_mistyped_command_is_answered_with_the_nearest_and_status_2():
    answer = CliRunner().invoke(main, ["task", "list"])
    assert (answer.exit_code, "Did you mean 'tasks'?" in answer.output) == (2, True)


def test_a_command_whose_packages_are_not_installed_says_what_to_install():
    hidden = "import sys; sys.modules['sqlalchemy'] = None; from howl.cli import main; main()"
    refused = subprocess.run([sys.executable, "-c", hidden, "tasks"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "`howl tasks` needs sqlalchemy" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_worker_command_loads_nothing_of_the_server_side():
    loaded = modules_after(
        "import howl.cli.worker, howl.worker.lifecycle.run, howl.worker.lifecycle.preflight, howl.worker.events.step"
    )
    assert "celery" in loaded
    assert not loaded & {"sqlalchemy", "psycopg", "alembic", "mcp", "flower"}


def test_asking_for_leave_loads_nothing_of_the_server_side():
    loaded = modules_after("import howl.cli.burst.leave")
    assert "nats" in loaded
    assert not loaded & {"sqlalchemy", "psycopg", "alembic", "mcp", "flower"}


@pytest.mark.parametrize(
    "line",
    [
        ["worker", "--runtime", "soon"],
        ["worker", "--queues", "a,,b"],
        ["tasks", "list", "--status", "happy"],
        ["tasks", "list", "--limit", "0"],
        ["tasks", "cancel"],
        ["analytics", "weather"],
        ["analytics", "--since", "yesterday"],
        ["env", "memcached"],
        ["submit"],
        ["submit", "tests.add", "--args", "{"],
        ["submit", "tests.add", "--args", "3"],
        ["submit", "tests.add", "--args", "@/no/such/file"],
        ["submit", "tests.add", "--args", "[" * 100_000],
        ["submit", "tests.add", "--priority", "10"],
        ["submit", "tests.add", "--timeout", "3s"],
    ],
    ids=lambda line: " ".join(line)[:60],
)
def test_a_wrong_command_line_ends_with_status_2(line):
    answer = CliRunner().invoke(main, line)
    assert (answer.exit_code, "Error: " in answer.output) == (2, True)


@pytest.mark.parametrize("line", [["tasks", "list"], ["workers", "list"], ["analytics"], ["env"], ["env", "nats"]])
def test_a_command_without_any_server_says_what_to_set_and_ends_with_status_1(line, tmp_path):
    answer = CliRunner().invoke(main, line, env={"HOWL_HOME": str(tmp_path)})
    assert answer.exit_code == 1
    assert "HOWL_" in answer.output
    assert "`howl up`" in answer.output
