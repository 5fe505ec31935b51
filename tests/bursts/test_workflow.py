"""burst.yml itself: each of its scripts is run as GitHub runs it, against real servers."""

import json
import os
import re
import shlex
import shutil
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select

from howl.bursts import admission, budget
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections import postgres
from howl.errors import ServerUnavailable
from howl.models import Burst
from tests.helpers.runner import EXPRESSION, ROOT, Runner, job, obeyed, step, variables
from tests.helpers.support import PATIENCE, Process, eventually, optional_program

#: A worker's machine installs fewer.
BYTES = 60e6
#: Steps that may see a secret.
AGAIN = "Ask the server's leave for one more attempt"
TRUSTED = {"Ask the server's leave", AGAIN, "Check the way to the server", "Work"}


def steps() -> list[dict[str, Any]]:
    return [each for name in ("plan", "worker") for each in job(name)["steps"]]


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


def asked(runner: Runner, **inputs: str) -> tuple[int, str]:
    """The planning job's question, asked with the real command: exit status, and what was printed."""
    optional_program("jq")
    env = variables("plan", "Ask the server's leave", {f"inputs.{name}": value for name, value in inputs.items()})
    return runner.run(step("plan", "Ask the server's leave")["run"], **env)


def bursts(settings: Settings) -> list[Burst]:
    with postgres.session(settings.database()) as session:
        return list(session.scalars(select(Burst)))


def test_a_burst_that_is_granted_becomes_a_matrix(runner: Runner, server: Process, settings: Settings) -> None:
    status, said = asked(runner, num_workers="2", tags="a,b", queues="q", concurrency="4")
    assert (status, said.splitlines()[-1]) == (0, "Granted."), said
    (row,) = bursts(settings)
    outputs = runner.outputs()
    assert (outputs["granted"], outputs["burst_id"]) == ("true", row.burst_id)
    assert json.loads(outputs["matrix"]) == [{"index": n, "name": f"worker-4711-1-{n}"} for n in (1, 2)]
    assert (row.num_workers, row.runtime_minutes, row.requested_by) == (2, 30, "github:push by octocat")
    assert row.run == {"repository": "octo/site", "run_id": "4711", "attempt": "1"}
    assert row.request == {"tags": ["a", "b"], "queues": ["q"], "concurrency": 4}


def test_a_run_that_howl_burst_start_began_is_the_burst_that_was_granted(
    runner: Runner, server: Process, settings: Settings
) -> None:
    wanted = BurstRequest(workers=1, runtime=300)
    with postgres.session(settings.database()) as session:
        budget.ask(session, settings, wanted)
    status, said = asked(runner, burst_id=wanted.burst_id, num_workers="1", runtime_minutes="5")
    assert (status, runner.outputs()["burst_id"]) == (0, wanted.burst_id), said
    assert [row.run["run_id"] for row in bursts(settings)] == ["4711"]


def test_a_burst_that_is_refused_starts_no_worker_and_shows_the_arithmetic(
    runner: Runner, start: Callable[..., Process], env: dict[str, str]
) -> None:
    process = start("server", env=env | {"HOWL_BUDGET_MINUTES": "60"})
    eventually(lambda: "server is up" in process.output)
    status, said = asked(runner)
    assert status == 0, said
    assert (runner.outputs()["granted"], runner.outputs()["matrix"]) == ("false", "[]")
    assert "3 workers x 30 min = 90 minutes, and 60 of this month's 60 are left" in runner.summary.read_text()


def test_a_job_that_is_run_again_without_its_plan_asks_counts_and_may_be_refused(
    runner: Runner, start: Callable[..., Process], env: dict[str, str], settings: Settings
) -> None:
    process = start("server", env=env | {"HOWL_BUDGET_MINUTES": "90"})
    eventually(lambda: "server is up" in process.output)
    assert asked(runner, num_workers="2")[0] == 0
    planned = runner.outputs()
    known = {"matrix.index": "2", "needs.plan.outputs.attempt": planned["attempt"]}
    given = variables("worker", AGAIN, known)
    script = step("worker", AGAIN)["run"]
    assert runner.run(script, **given)[0] == 0  # the attempt that was planned
    assert (runner.outputs(), len(bursts(settings))) == (planned, 1)
    status, said = runner.run(script, **given, GITHUB_RUN_ATTEMPT="2")
    assert (status, said.splitlines()[-1]) == (0, "Granted."), said
    first, second = sorted(bursts(settings), key=lambda row: row.started_at)
    again = {name: value for name, value in runner.outputs().items() if planned.get(name) != value}
    assert again == {"name": "worker-4711-2-2", "burst_id": second.burst_id}
    assert second.run == {"repository": "octo/site", "run_id": "4711", "attempt": "2", "index": "2"}
    assert (first.minutes_planned, second.minutes_planned) == (60, 30)
    status, said = runner.run(script, **given, GITHUB_RUN_ATTEMPT="3")
    assert status == 1, said
    assert "No worker: 1 workers x 30 min = 30 minutes, and 0 of this month's 90 are left" in said
    assert "No worker: " in runner.summary.read_text()


def test_a_job_that_is_put_off_asks_again_later(
    runner: Runner, server: Process, settings: Settings, tmp_path: Path
) -> None:
    real = shutil.which("howl", path=runner.env["PATH"])
    programs = {
        "sleep": 'echo "sleeps $1"',
        "howl": f'if [[ -e "$0.put-off" ]]; then exec {real} "$@"; fi; touch "$0.put-off"; exit 1',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    runner.env["PATH"] = f"{tmp_path}:{runner.env['PATH']}"
    given = variables("worker", AGAIN, {"matrix.index": "1", "needs.plan.outputs.attempt": "1"})
    status, said = runner.run(step("worker", AGAIN)["run"], **given, GITHUB_RUN_ATTEMPT="2")
    assert status == 0, said
    assert len(re.findall(r"(?m)^sleeps [3-8]\d$", said)) == 1
    assert [row.run["index"] for row in bursts(settings)] == ["1"]


def test_a_plan_that_nobody_answers_fails_and_grants_nothing(runner: Runner) -> None:
    status, said = asked(runner)
    assert status == 1
    assert "No `howl server` listens" in said
    assert runner.outputs() == {}


@pytest.mark.parametrize(
    "told",
    [
        {"burst_id": "0\nmatrix=[]"},
        {"matrix": [{"index": 1, "name": "a\nb"}]},
        {"matrix": [{"index": 257, "name": "a"}]},
        {"granted": "true\ngranted=true"},
        {"reason": "no\n::add-mask::e"},
        {"reason": "<img src=x>"},
        {"failed": "[look](https://example.org)"},
    ],
    ids=str,
)
def test_an_answer_of_which_a_job_would_make_something_else_is_not_read(told: dict[str, Any]) -> None:
    with pytest.raises(ServerUnavailable, match="cannot be read"):
        admission._read(json.dumps(told).encode())


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


def test_a_worker_that_was_given_leave_again_takes_the_name_of_its_attempt(
    runner: Runner, known: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "howl").write_text('#!/usr/bin/env bash\necho "$WORKER_ID of $HOWL_BURST_ID"\n')
    (tmp_path / "howl").chmod(0o755)
    runner.env["PATH"] = f"{tmp_path}:{runner.env['PATH']}"
    again = {"steps.again.outputs.name": "worker-4711-2-1", "steps.again.outputs.burst_id": "b2"}
    for given, name in ((known, "worker-4711-1-1 of b1"), (known | again, "worker-4711-2-1 of b2")):
        _, said = runner.run(step("worker", "Work")["run"], **variables("worker", "Work", given))
        assert said.splitlines()[-1] == name
    names = [each["name"] for each in job("worker")["steps"]]
    assert names.index(AGAIN) < names.index("Run the repository's own set-up")


def test_the_repository_s_own_set_up_is_run_if_there_is_one(runner: Runner) -> None:
    script = step("worker", "Run the repository's own set-up")["run"]
    folder = runner.folder / "repository"
    nothing = runner.begin(script, cwd=folder)
    assert (nothing.wait(), nothing.output) == (0, "")
    (folder / ".github" / "burst-setup.sh").write_text("echo set up in $PWD\nexit 3\n")
    something = runner.begin(script, cwd=folder)
    assert (something.wait(), something.output) == (3, f"set up in {os.fspath(folder)}\n")


#: What somebody's agent may print; the last two count wherever they stand in a line.
ORDERS = (
    "::add-mask::e",
    "  ::set-output name=granted::true",
    "::stop-commands::mine",
    "x ##[add-mask]e",
    "##[error]no",
)


def at_work(runner: Runner, known: dict[str, str], **env: str) -> Process:
    """The last step, when it takes tasks."""
    given = variables("worker", "Work", known) | env
    work = runner.begin(step("worker", "Work")["run"], cwd=runner.folder / "repository", **given)
    eventually(lambda: " ready." in work.output or work.popen.poll() is not None)
    assert work.popen.poll() is None, work.output
    return work


def ended(task_row: Callable[[str], Any], task_id: str) -> Any:
    """The task's row, at its end."""
    return eventually(lambda: (row := task_row(task_id)) and row.finished_at and row)


def test_what_a_task_says_in_a_job_s_log_is_no_command_to_its_runner(
    runner: Runner, server: Process, known: dict[str, str], app: Celery, task_row: Callable[[str], Any]
) -> None:
    agent = shlex.join([sys.executable, "-c", f"raise SystemExit({chr(10).join(ORDERS)!r})", "{prompt}"])
    work = at_work(runner, known | {"vars.HOWL_AGENT_COMMAND": agent})
    sent = [app.send_task("agent.run", ["hello"]), app.send_task("tests.fail", ["\n".join(("said", *ORDERS))])]
    for each in sent:
        ended(task_row, each.id)
    eventually(lambda: all(work.output.count(order) >= 2 for order in ORDERS[-2:]))
    assert len(obeyed("".join(work.output.splitlines(keepends=True)[2:]))) >= 2  # it would have been
    assert obeyed(work.output) == ["remove-matcher", "stop-commands"]


def test_a_task_cannot_find_out_what_would_let_it_give_commands_to_the_runner(
    runner: Runner, server: Process, known: dict[str, str], app: Celery, task_row: Callable[[str], Any]
) -> None:
    work = at_work(runner, known)
    word = re.findall(r"(?m)^::stop-commands::([0-9a-f]{64})$", work.output)[0]
    assert word not in Path(f"/proc/{work.pid}/cmdline").read_text()
    with suppress(PermissionError):  # nobody but root may look
        assert word not in Path(f"/proc/{work.pid}/environ").read_text()
    given = app.send_task("command.run", [["env"]])
    inside = app.send_task("tests.variables")
    rows = [ended(task_row, each.id) for each in (given, inside)]
    assert word not in rows[0].result["stdout"]
    named = {name for name in runner.env if name.startswith("GITHUB_") and Path(runner.env[name]).is_absolute()}
    assert named == {"GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY"}
    assert not named & set(rows[1].result)
    assert not [line for line in rows[0].result["stdout"].splitlines() if line.partition("=")[0] in named]
    runner.cancel(1.0)
    assert "| tests.variables | 1 |" in runner.summary.read_text()


@pytest.mark.parametrize("name", [each["name"] for each in steps() if "secrets.HOWL_JOIN" in json.dumps(each)])
def test_each_step_that_shows_what_others_say_stops_commands_first_and_reads_no_env_file(name: str) -> None:
    (found,) = [each for each in steps() if each["name"] == name]
    assert found["run"].splitlines()[1].startswith('echo "::stop-commands::$(')
    assert found["env"]["HOWL_ENV_FILE"] == ""
    assert "howl " not in "".join(each.get("run", "") for each in steps() if each["name"] not in TRUSTED).replace(
        "howl/", ""
    )


# --- installing --------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(runner: Runner) -> Runner:
    """A machine on which nothing is installed but Python, and HOWL is checked out."""
    venv.create(runner.folder / "python", with_pip=True)
    runner.env["PATH"] = f"{runner.folder / 'python' / 'bin'}:{os.environ['PATH']}"
    runner.env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "_proxy" in name}
    del runner.env["PYTHONPATH"], runner.env["HOWL_TASK_MODULES"]
    (runner.folder / "howl").symlink_to(ROOT)
    return runner


def test_what_the_install_step_installs_is_all_that_the_others_need(
    fresh: Runner, server: Process, known: dict[str, str], app: Celery, task_row: Callable[[str], Any]
) -> None:
    assert [step(name, "Install")["run"] for name in ("plan", "worker")] == 2 * [step("plan", "Install")["run"]]
    installed, said = fresh.run(step("plan", "Install")["run"], PIP_RETRIES="1")
    if installed and "connection broken" in said and "CI" not in os.environ:
        pytest.skip("no package registry can be reached")
    assert installed == 0, said
    (packages,) = fresh.folder.glob("python/lib/*/site-packages")
    assert not (packages / "sqlalchemy").exists()
    assert size(packages) - size(*packages.glob("pip*"), *packages.glob("setuptools*")) < BYTES
    status, said = asked(fresh, num_workers="1")
    assert (status, fresh.outputs()["granted"]) == (0, "true"), said
    work = fresh.begin(
        step("worker", "Work")["run"], cwd=fresh.folder / "repository", **variables("worker", "Work", known)
    )
    sent = app.send_task("command.run", [["pwd"]])
    row = eventually(lambda: work.popen.poll() is not None or ((row := task_row(sent.id)) and row.finished_at and row))
    assert work.popen.poll() is None, work.output
    assert row.result["stdout"].strip() == str(fresh.folder / "repository")


def size(*folders: Path) -> int:
    """Bytes of all files there."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


# --- what the file says ------------------------------------------------------------------------------------------


def test_no_expression_stands_in_a_script() -> None:
    scripts = [each["run"] for each in steps() if "run" in each]
    assert len(scripts) >= 6
    assert [script for script in scripts if EXPRESSION.search(script)] == []


def test_a_secret_is_shown_to_the_steps_that_need_it_alone() -> None:
    seeing = {each["name"] for each in steps() if "secrets." in json.dumps(each)}
    assert seeing == TRUSTED
    assert [each["name"] for each in steps() if "CURSOR_API_KEY" in json.dumps(each)] == ["Work"]
    assert "secrets." not in json.dumps([job(name).get("env", {}) for name in ("plan", "worker")])
