"""What a command can read of the secrets of its worker, and of an agent's, as the same ordinary user."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery

from howl.config import Settings
from tests.helpers.support import Process, as_an_ordinary_user, eventually

pytestmark = [pytest.mark.servers, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

THIEF = [sys.executable, str(Path(__file__).parents[2] / "helpers" / "thief.py")]
#: What a worker may have been told in its environment, by variable; the agent's key goes to agents alone.
TOLD = {
    "AGENT_KEY": "agent-key-0123456789",
    "GITHUB_TOKEN": "ghs-token-0123456789",
    "HOWL_GITHUB_TOKEN": "ghp-token-0123456789",
    "POSTGRES_PASSWORD": "postgres-0123456789",
    "SOMEBODYS_OWN": "unheard-of-0123456789",
}
#: Says its key backwards; given a number, it goes on for as many seconds.
AGENT_MARK = "import os, sys, time"
PROGRAM = (
    f"{AGENT_MARK}; print(os.environ['AGENT_KEY'][::-1]); time.sleep(float(sys.argv[1].isdigit() and sys.argv[1]))"
)
AGENT = shlex.join([sys.executable, "-c", PROGRAM, "{prompt}"])
#: How a worker is started.
WAYS = (("howl", "worker", "--name", "w1"), ("celery", "-A", "howl", "worker", "-n", "w1@w1", "-l", "INFO"))


@pytest.fixture
def hire(worker_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a worker as somebody who is not root, in either way."""
    become = as_an_ordinary_user()
    told = {"HOWL_AGENT_ENV": "AGENT_KEY,PATH", "HOWL_AGENT_COMMAND": AGENT, "HOWL_WORKER_ORIGIN": "local"}
    env = worker_env | TOLD | told | {"HOWL_ENV_FILE": "", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    running: list[Process] = []

    def start(*options: str, way: tuple[str, ...] = WAYS[0]) -> Process:
        program = str(Path(sys.executable).with_name(way[0]))
        process = Process([*become, program, *way[1:], *options], env, tmp_path / f"worker-{len(running)}.log")
        running.append(process)
        eventually(lambda: " ready." in process.output or process.popen.poll() is not None)
        assert process.popen.poll() is None, process.output
        return process

    yield start
    for process in running:
        process.end()


@pytest.fixture
def ended(app: Celery, server: Process, task_row: Callable[[str], Any]) -> Callable[..., Any]:
    """Send a task; its row when it has ended."""

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        sent = app.send_task(name, args, kwargs)
        return eventually(lambda: (row := task_row(sent.id)) and row.finished_at and row)

    return run


@pytest.fixture
def steal(settings: Settings, ended: Callable[..., Any]) -> Callable[[Process], str]:
    """Have a command look everywhere; what it found."""
    passwords = [urlsplit(url).password or "" for url in (settings.redis(), settings.nats())]

    def look(worker: Process) -> str:
        # Where tests are not root's, the test itself and `howl server` are the same user's, and know them.
        searched = "0" if os.geteuid() == 0 else str(worker.pid)
        row = ended(
            "command.run", [*THIEF, searched], input="\n".join(secret[::-1] for secret in (*TOLD.values(), *passwords))
        )
        assert row.status == "succeeded", row.error
        return str(row.result["stdout"])

    return look


@pytest.mark.parametrize(
    ("way", "pool"), [(WAYS[0], "prefork"), (WAYS[0], "threads"), (WAYS[1], "prefork"), (WAYS[1], "solo")]
)
def test_a_command_of_the_worker_s_user_finds_none_of_its_secrets(way: tuple[str, ...], pool: str, hire, steal):
    worker = hire("--pool", pool, "--concurrency", "1" if pool == "solo" else "2", way=way)
    found = steal(worker)
    assert "found" not in found, worker.output
    assert re.fullmatch(r"read [1-9]\d*\n", found), found  # its own at least, or it could not look at all


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody else may look")
def test_even_root_finds_no_secret_in_the_environment_of_a_worker_and_its_children(hire, ended):
    worker = hire("--concurrency", "2")
    assert ended("command.run", ["true"]).status == "succeeded"
    pids = [worker.pid, *children(worker.pid)]
    assert len(pids) == 3
    for pid in pids:
        assert b"0123456789" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_child_that_a_pool_starts_later_knows_the_settings_which_are_in_no_environment(hire, steal, ended):
    worker = hire("--concurrency", "1")
    (child,) = children(worker.pid)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: children(worker.pid) not in ([], [child]))
    assert "found" not in steal(worker)
    assert ended("agent.run", "hello").result["stdout"].strip() == TOLD["AGENT_KEY"][::-1]


def test_while_an_agent_runs_its_key_is_found_in_its_own_process_alone(hire, steal, app: Celery):
    worker = hire("--concurrency", "2")
    app.send_task("agent.run", ["30"])
    eventually(lambda: (found := steal(worker)) and AGENT_MARK in found)
    found = [line for line in steal(worker).splitlines() if line.startswith("found")]
    assert {line.split()[1] for line in found} == {"0"}
    assert [line for line in found if AGENT_MARK not in line] == []


def test_an_agent_is_given_its_key_which_is_in_no_other_environment(hire, ended):
    hire("--concurrency", "1")
    row = ended("agent.run", "hello")
    assert (row.status, row.result["stdout"].strip()) == ("succeeded", TOLD["AGENT_KEY"][::-1]), row.error
    told = ended("command.run", ["env"]).result["stdout"]
    assert "AGENT_KEY" not in told
    assert "GITHUB_" not in told


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_worker_that_is_told_to_start_anew_is_told_everything_again(way: tuple[str, ...], hire, steal):
    worker = hire("--concurrency", "1", way=way)
    worker.signal(signal.SIGHUP)
    eventually(lambda: worker.output.count(" ready.") == 2 or worker.popen.poll() is not None)
    assert worker.popen.poll() is None, worker.output
    assert "found" not in steal(worker)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
