"""burst.yml itself: each of its scripts is run as GitHub runs it, against real servers."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from howl.config import Settings
from tests.burst.runner import EXPRESSION, Runner, job, step, variables
from tests.support import PATIENCE, Process, eventually, optional_program

#: Stands in for the one question to the server; all else is the real command.
ASKING = """\
#!/bin/bash
if [[ "$1 $2" == "burst leave" ]]; then printf '%s\\n' "$@" > "$ASKED"; echo "$ANSWER"; else exec {howl} "$@"; fi
"""
GRANTED = {"granted": True, "burst_id": "b1", "matrix": [{"index": 1, "name": "worker-4711-1-1"}], "reason": None}
REFUSED = {"granted": False, "burst_id": None, "matrix": [], "reason": "3 workers x 30 min = 90, and 60 are left."}
#: Steps that may see a secret.
TRUSTED = {"Ask the server's leave", "Check the way to the server", "Work"}


@pytest.fixture
def runner(tmp_path: Path, worker_env: dict[str, str]) -> Iterator[Runner]:
    """A machine of GitHub's, whose repository has been checked out."""
    made = Runner(tmp_path / "runner", worker_env)
    (made.folder / "repository" / ".github").mkdir(parents=True)
    yield made
    made.vanish()


@pytest.fixture
def known(settings: Settings) -> dict[str, str]:
    """What the workflow's expressions are worth, beside its own defaults; the servers' addresses are the machine's."""
    return {
        "matrix.index": "1",
        "matrix.name": "worker-4711-1-1",
        "needs.plan.outputs.burst_id": "b1",
        "secrets.CURSOR_API_KEY": "for the agent",
        "inputs.tags": "fast,near",
        "inputs.concurrency": "1",
    }


def checked(runner: Runner, **inputs: str) -> tuple[int, str]:
    given = {f"inputs.{name}": value for name, value in inputs.items()}
    env = variables("plan", "Check the inputs", given)
    return runner.run(step("plan", "Check the inputs")["run"], **env)


# --- planning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"runtime_minutes": "350", "num_workers": "256", "tags": "linux,x-64", "queues": "a.b", "concurrency": "8"},
        {"burst_id": "0123456789abcdef" * 2},
    ],
    ids=["defaults", "everything", "by howl burst start"],
)
def test_inputs_that_make_sense_are_passed(inputs: dict[str, str], runner: Runner) -> None:
    status, said = checked(runner, **inputs)
    assert (status, said) == (0, "")
    assert runner.outputs() == {"timeout_minutes": str(int(inputs.get("runtime_minutes", "30")) + 10)}


@pytest.mark.parametrize(
    "inputs",
    [
        {"runtime_minutes": "351"},
        {"runtime_minutes": "08"},
        {"runtime_minutes": "a[$(touch evil)]"},
        {"num_workers": "0"},
        {"num_workers": "257"},
        {"tags": "a b"},
        {"tags": "$(touch evil)"},
        {"queues": "a,,b"},
        {"concurrency": "-1"},
        {"burst_id": "x\ny=z"},
    ],
    ids=str,
)
def test_other_inputs_are_refused_before_anything_is_installed(inputs: dict[str, str], runner: Runner) -> None:
    status, said = checked(runner, **inputs)
    assert status == 1
    assert f"::error title=No burst::{next(iter(inputs))}" in said
    assert next(iter(inputs)) in runner.summary.read_text()
    assert runner.outputs() == {}
    assert not list(runner.folder.rglob("evil"))


def asked(runner: Runner, answer: object, **inputs: str) -> tuple[int, str, list[str]]:
    """The planning job's question: exit status, what was printed, and the command line it asked with."""
    optional_program("jq")
    stand_in = runner.folder / "bin" / "howl"
    stand_in.parent.mkdir()
    stand_in.write_text(ASKING.format(howl=Path(sys.executable).with_name("howl")))
    stand_in.chmod(0o755)
    runner.env["PATH"] = f"{stand_in.parent}:{runner.env['PATH']}"
    env = variables("plan", "Ask the server's leave", {f"inputs.{name}": value for name, value in inputs.items()})
    line = runner.folder / "asked"
    told = answer if isinstance(answer, str) else json.dumps(answer)
    status, said = runner.run(step("plan", "Ask the server's leave")["run"], **env, ANSWER=told, ASKED=str(line))
    return status, said, line.read_text().splitlines() if line.exists() else []


def test_a_burst_that_is_granted_becomes_a_matrix(runner: Runner, server: Process) -> None:
    status, said, line = asked(runner, GRANTED, num_workers="1", tags="a,b")
    assert status == 0, said
    assert line == ["burst", "leave", "--workers", "1", "--runtime", "30m", "--burst-id", "", "--tags", "a,b", "--json"]
    outputs = runner.outputs()
    assert (outputs["granted"], outputs["burst_id"]) == ("true", "b1")
    assert json.loads(outputs["matrix"]) == GRANTED["matrix"]


def test_a_burst_that_is_refused_starts_no_worker_and_shows_the_arithmetic(runner: Runner, server: Process) -> None:
    status, said, _ = asked(runner, REFUSED)
    assert status == 0, said
    assert (runner.outputs()["granted"], runner.outputs()["matrix"]) == ("false", "[]")
    assert "= 90, and 60 are left" in runner.summary.read_text()


def test_an_answer_that_is_none_ends_the_plan(runner: Runner, server: Process) -> None:
    status, _, _ = asked(runner, "Usage: howl burst")
    assert status != 0
    assert "granted" not in runner.outputs()


# --- working -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["redis", "nats"])
def test_a_wrong_secret_is_told_in_seconds_and_no_worker_starts(
    name: str, runner: Runner, server: Process, settings: Settings
) -> None:
    right = getattr(settings, name)()
    head, _, host = right.rpartition("@")
    wrong = {f"HOWL_{name.upper()}_URL": f"{head.rpartition(':')[0]}:wrong@{host}"}
    began = time.monotonic()
    env = variables("worker", "Check the way to the server", {})
    status, said = runner.run(step("worker", "Check the way to the server")["run"], **env, **wrong)
    assert status == 1, said
    assert time.monotonic() - began < PATIENCE / 2
    assert [line for line in said.splitlines() if "✗" in line and "login" in line], said


def test_the_last_script_becomes_the_worker_itself(
    runner: Runner, server: Process, known: dict[str, str], worker_row: Callable[[str], Any]
) -> None:
    given = variables("worker", "Work", known)
    work = runner.begin(step("worker", "Work")["run"], cwd=runner.folder / "repository", **given)
    row = eventually(lambda: worker_row("worker-4711-1-1") or work.popen.poll() is not None)
    assert work.popen.poll() is None, work.output
    assert "bash" not in Path(f"/proc/{work.pid}/cmdline").read_text()
    assert (row.status, row.origin, row.tags, row.concurrency) == ("active", "github-actions", ["fast", "near"], 1)
    assert row.run == {
        "repository": "octo/site", "run_id": "4711", "attempt": "1", "job": "worker", "index": "1", "burst_id": "b1",
    }  # fmt: skip
    assert row.deadline_at is not None
    runner.cancel(1.0)
    assert "It began no task." in runner.summary.read_text()
    eventually(lambda: worker_row("worker-4711-1-1").status == "offline")


def test_the_repository_s_own_set_up_is_run_if_there_is_one(runner: Runner) -> None:
    script = step("worker", "Run the repository's own set-up")["run"]
    folder = runner.folder / "repository"
    nothing = runner.begin(script, cwd=folder)
    assert (nothing.wait(), nothing.output) == (0, "")
    (folder / ".github" / "burst-setup.sh").write_text("echo set up in $PWD\nexit 3\n")
    something = runner.begin(script, cwd=folder)
    assert (something.wait(), something.output) == (3, f"set up in {os.fspath(folder)}\n")


# --- what the file says ------------------------------------------------------------------------------------------


def steps() -> list[dict[str, Any]]:
    return [each for name in ("plan", "worker") for each in job(name)["steps"]]


def test_no_expression_stands_in_a_script() -> None:
    scripts = [each["run"] for each in steps() if "run" in each]
    assert len(scripts) >= 6
    assert [script for script in scripts if EXPRESSION.search(script)] == []


def test_a_secret_is_shown_to_the_steps_that_need_it_alone() -> None:
    seeing = {each["name"] for each in steps() if "secrets." in json.dumps(each)}
    assert seeing == TRUSTED
    assert [each["name"] for each in steps() if "CURSOR_API_KEY" in json.dumps(each)] == ["Work"]
    assert "secrets." not in json.dumps([job(name).get("env", {}) for name in ("plan", "worker")])
