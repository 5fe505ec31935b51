"""`howl up`: everything on one machine, from the first start to the last process."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from howl.embedded.isolation import clean_environment
from tests.helpers.support import eventually, run_program, servers_folder

PROGRAMS = ("valkey-server", "nats-server", "postgres", "howl.cli")


@pytest.fixture
def home():
    """A state folder that the user PostgreSQL runs as can enter."""
    folder = servers_folder("howl up ")
    yield folder / "state"
    shutil.rmtree(folder)


@pytest.fixture
def env(home):
    """What a person has set who set nothing but a folder."""
    return clean_environment(HOWL_HOME=str(home))


@pytest.fixture
def up(start, env):
    """`howl up`, once its server is up."""
    process = start("up", env=env)
    eventually(lambda: "server is up" in process.output or process.popen.poll() is not None)
    assert process.popen.poll() is None, process.output
    return process


def howl(*line, env):
    argv = [sys.executable, "-m", "howl.cli", *line]
    return run_program(argv, env, timeout=60)


def processes():
    """Process ids to (parent, command line) of this machine."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in listed.stdout.splitlines())
    return {int(pid): (int(parent), args) for pid, parent, args in rows}


def children(pid):
    """Command lines of a process's children by id."""
    return {child: args for child, (parent, args) in processes().items() if parent == pid}


def all_gone(pids):
    now = processes()  # one look: at the next, what is seen dying now is no longer there
    return not [pid for pid in pids if pid in now and "<defunct>" not in now[pid][1]]


def passwords(home):
    found = [value for value in json.loads((home / "passwords.json").read_text()).values() if isinstance(value, str)]
    assert len(found) >= 3
    return found


def test_a_second_terminal_finds_the_servers_and_sigterm_ends_them_all(up, env):
    running = children(up.pid)
    assert all(any(program in args for args in running.values()) for program in PROGRAMS)
    assert howl("workers", "list", env=env).stdout.startswith("No workers are active")
    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    assert all_gone(running)
    assert "No address of" in howl("workers", "list", env=env).stderr


def test_no_password_is_in_what_it_prints_nor_in_any_command_line(up, home):
    seen = up.output + "".join(args for _, args in processes().values())
    assert "howl.cli server" in seen
    assert not [password for password in passwords(home) if password in seen]


@pytest.mark.parametrize("program", ["valkey-server", "howl.cli server"])
def test_when_a_server_dies_all_end_with_status_1_and_its_name(up, program):
    running = children(up.pid)
    (victim,) = [pid for pid, args in running.items() if program in args]
    os.kill(victim, signal.SIGKILL)
    assert up.wait() == 1
    assert "stopped by itself" in up.output
    assert all_gone(running)


def test_when_it_is_killed_outright_nothing_of_it_lives_on(up):
    running = children(up.pid)
    assert len(running) >= len(PROGRAMS)
    up.signal(signal.SIGKILL)
    up.wait()
    eventually(lambda: all_gone(running))


def test_ctrl_c_ends_them_all_and_what_was_recorded_is_there_after_the_next_start(up, start, env):
    running = children(up.pid)
    first = howl("submit", "command.run", "--args", '[["true"]]', env=env)
    assert first.returncode == 0, first.stderr
    up.signal(signal.SIGINT)
    assert (up.wait(), all_gone(running)) == (0, True)
    again = start("up", env=env)
    eventually(lambda: "server is up" in again.output)
    (task,) = json.loads(howl("tasks", "list", "--json", env=env).stdout)
    assert task["task_id"] == first.stdout.strip()


def test_what_howl_env_said_before_holds_after_the_next_start_and_is_explained_meanwhile(up, start, env):
    lines = [shlex.split(line) for line in howl("env", env=env).stdout.splitlines() if line.startswith("export HOWL_")]
    told = env | dict(words[1].split("=", 1) for words in lines)
    up.signal(signal.SIGINT)
    assert up.wait() == 0
    for line in (["tasks", "list"], ["doctor"]):
        refused = howl(*line, env=told)
        assert refused.returncode == 1
        assert "`howl up`, which listened there, does not run" in refused.stdout + refused.stderr
    again = start("up", env=told)
    eventually(lambda: "In a second terminal" in again.output)
    assert "unset HOWL_REDIS_URL" not in again.output
    assert howl("tasks", "list", env=told).returncode == 0
    elsewhere = howl("tasks", "list", env=told | {"HOWL_DATABASE_URL": "postgresql://howl:sekret@127.0.0.1:9/howl"})
    assert "`howl up` runs and listens elsewhere: `unset HOWL_REDIS_URL" in elsewhere.stderr
    assert "sekret" not in elsewhere.stderr


def test_a_second_one_in_the_same_folder_is_refused(up, env):
    refused = howl("up", env=env)
    assert (refused.returncode, "Another `howl up` uses the state folder" in refused.stderr) == (1, True)
    assert up.popen.poll() is None


def test_it_says_how_to_use_it_from_a_terminal_that_names_other_servers(start, env, home):
    process = start("up", env=env | {"HOWL_REDIS_URL": "redis://127.0.0.1:1/0"})
    # Its server, a process of its own, may say first that it is up.
    eventually(lambda: "unset HOWL_REDIS_URL" in process.output or process.popen.poll() is not None)
    assert "unset HOWL_REDIS_URL" in process.output
    assert f"export HOWL_HOME='{home}'" in process.output
