"""GitHub's runner, as far as a step of a job can tell: its shell, its variables, its cancels and its ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.helpers.support import PATIENCE, Process

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "burst.yml"
#: Seconds for a step: one installs packages while other tests run.
STEP = 150
#: Seconds from SIGINT to SIGTERM, and from there to the end of the step's process.
TO_TERM, TO_KILL = 7.5, 2.5
#: What the runner knows, and the two forms of it; both read in actions/runner, src/Runner.Common/ActionCommand.cs.
COMMANDS = ("add-mask", "add-matcher", "remove-matcher", "add-path", "debug", "echo", "endgroup", "error", "group",
            "notice", "save-state", "set-env", "set-output", "stop-commands", "warning")  # fmt: skip
V2 = re.compile(r"\s*::(?P<name>[^ :]+)[^:]*?::(?P<data>.*)")
V1 = re.compile(r"##\[(?P<name>[^ \]]+)[^\]]*\](?P<data>.*)")
#: An expression of a workflow file.
EXPRESSION = re.compile(r"\$\{\{ *(.+?) *\}\}")


class Runner:
    """One machine, for one job of one run."""

    def __init__(self, folder: Path, env: Mapping[str, str], *, run_id: str = "4711", index: int = 1) -> None:
        self.folder = folder
        self.run_id = run_id
        folder.mkdir(parents=True)
        self.output, self.summary = folder / "output", folder / "summary.md"
        for file in (self.output, self.summary):
            file.touch()
        self.env = {
            **env,
            # What is installed in a job is first on its PATH.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTOR": "octocat",
            "GITHUB_EVENT_NAME": "push",
            "GITHUB_JOB": "worker",
            "GITHUB_REPOSITORY": "octo/site",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_RUN_ID": run_id,
            "GITHUB_ENV": str(folder / "env"),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_PATH": str(folder / "path"),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_NAME": f"GitHub Actions {1000 + index}",
            "HOWL_WORKER_INDEX": str(index),
        }
        self.steps: list[Process] = []

    # --- running ----------------------------------------------------------------------------------------------------

    def begin(self, script: str, *, cwd: Path | None = None, **env: str) -> Process:
        """Run a step's script, as `shell: bash` does; `cwd` is its working directory, by default the workspace."""
        file = self.folder / f"step-{len(self.steps)}.sh"
        file.write_text(script)
        shell = ["env", f"--chdir={cwd or self.folder}"]
        shell += ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(file)]
        self.steps.append(Process(shell, {**self.env, **env}, file.with_suffix(".log")))
        return self.steps[-1]

    def run(self, script: str, **env: str) -> tuple[int, str]:
        """A step to its end: exit status and what it printed."""
        step = self.begin(script, **env)
        return step.wait(STEP), step.output

    def outputs(self) -> dict[str, str]:
        """What the steps have set."""
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())

    # --- ending -----------------------------------------------------------------------------------------------------

    def cancel(self, to_term: float = TO_TERM) -> float:
        """As GitHub cancels a job, or ends it at its time-out; seconds until the step's process was gone.

        Only the entry process is told. What is left when it is gone, the machine's end takes away.
        """
        process, began = self.steps[-1].popen, time.monotonic()
        for number, patience in ((signal.SIGINT, to_term), (signal.SIGTERM, TO_KILL), (signal.SIGKILL, PATIENCE)):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        seconds = time.monotonic() - began
        self.vanish()
        return seconds

    def vanish(self) -> None:
        """The machine is gone, at once, with all that ran on it."""
        for step in self.steps:
            step.end()


# --- the log ---------------------------------------------------------------------------------------------------------


def obeyed(log: str) -> list[str]:
    """The commands in a step's log that GitHub's runner does what they say, as its ActionCommandManager reads them.

    A line that begins with `::`, blanks aside, or has `##[` anywhere; from `stop-commands` on, none but the word that
    ends that.
    """
    found, known, stopped = [], set(COMMANDS), None
    for line in log.splitlines():
        match = V2.match(line) or V1.search(line)
        if match is None or (command := match["name"].lower()) not in known or (stopped and command != stopped):
            continue
        found.append(command)
        if stopped:
            stopped = None
        elif command == "stop-commands":
            stopped = match["data"].lower()
            known.add(stopped)
    return found


# --- the workflow itself ---------------------------------------------------------------------------------------------


def job(name: str) -> dict[str, Any]:
    """A job of burst.yml."""
    return dict(YAML(typ="safe").load(WORKFLOW)["jobs"][name])


def step(job_name: str, name: str) -> dict[str, Any]:
    """A step of it, by its name."""
    return next(each for each in job(job_name)["steps"] if each.get("name") == name)


def variables(job_name: str, step_name: str, known: Mapping[str, str]) -> dict[str, str]:
    """What `env:` of a job and a step make, where expressions have the known values; others are empty, as there."""
    stated = {**job(job_name).get("env", {}), **step(job_name, step_name).get("env", {})}
    return {name: EXPRESSION.sub(lambda found: _value(found[1], known), str(text)) for name, text in stated.items()}


def _value(expression: str, known: Mapping[str, str]) -> str:
    value, _, otherwise = expression.partition(" || ")
    return known.get(value) or otherwise
