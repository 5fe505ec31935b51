"""The task that gives work to a headless coding agent, whichever one the worker's owner has set up."""

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import shared_task

from howl.errors import (
    AgentFailed,
    ArgumentsTooLong,
    CommandNotStarted,
    CommandTimedOut,
    HowlError,
    InvalidRequest,
    NotConfigured,
    SettingsError,
)
from howl.worker.lifecycle import environment
from howl.worker.task import context
from workers.checkout.checkout import ARTIFACTS, Checkout
from workers.checkout.collect import Left, brought, collect
from workers.checkout.permissions import require_commands, settings
from workers.checkout.repository import Source, wanted
from workers.checkout.workfolder import work_folder
from workers.process import process
from workers.process.output import last_lines
from workers.process.process import ProcessResult
from workers.process.spec import check_timeout, passable

#: Placeholders in HOWL_AGENT_COMMAND for the prompt as an argument, and for the path of a file that holds it; with
#: neither, the prompt is written to the agent's standard input.
PLACE, FILE = "{prompt}", "{prompt_file}"

#: Variables that an agent is never given, whatever HOWL_AGENT_ENV says: they lead to the server.
CREDENTIALS = re.compile("(HOWL|REDIS|NATS|POSTGRES|CELERY)_|PG[A-Z]+$")


class AgentResult(ProcessResult, Left):
    """The exit and the output of an agent, and what it left."""


@shared_task(name="agent.run")
def run(
    prompt: str,
    timeout: float | None = None,
    cwd: str | None = None,
    repository: str | None = None,
    ref: str | None = None,
) -> AgentResult:
    """Let a coding agent work on a prompt and return what it said, and what it left.

    prompt: what the agent is to do, as one text; it reaches the agent unchanged, and without a shell.
    timeout: seconds after which the agent is ended; when not given, the task's time limit ends it, or without one
    HOWL_AGENT_TIMEOUT of its worker, an hour if its owner says nothing.
    cwd: a folder on the worker to work in. When not given, the agent works in a new one, which is deleted afterwards.
    repository: an address (https://...) of a repository that is put into the new folder first; the worker's owner may
    have set one (HOWL_AGENT_REPOSITORY).
    ref: its branch, tag or commit; its default branch when not given.

    The worker's owner names the agent in HOWL_AGENT_COMMAND, e.g. `cursor-agent -p --force`, and in HOWL_AGENT_ENV the
    variables it needs, e.g. `CURSOR_API_KEY`; other than these it sees what command.run passes on. The prompt comes on
    its standard input, unless {prompt} stands in that command line for it, or {prompt_file} for a file that holds it.

    The answer is that of command.run, and so is the log. Unlike there, an exit status other than 0 is an error,
    AgentFailed, with the agent's last lines: work that was not done is a failed task. The agent's whole process tree
    ends with it.

    From a new folder, the files that the agent put into `artifacts/` become the task's artifacts, and what it changed
    in a repository becomes the artifact `changes.diff`, also when it fails or runs out of `timeout`. The answer lists
    them in `artifacts`, says in `refused` what was not kept and why, and in `changes` which files were changed.

    Errors: AgentFailed, CommandTimedOut, CommandNotStarted, NotConfigured (no agent on this worker), CheckoutFailed,
    ArtifactFailed, InvalidRequest, and on a permanent worker without HOWL_ALLOW_COMMANDS=1 CommandsNotAllowed.
    """
    require_commands("agent.run")
    check_timeout(timeout)
    agent = Agent(_template(), _checked(prompt), _variables(), _patience(timeout))
    if cwd is not None and (repository is not None or ref is not None):
        raise InvalidRequest("Give cwd or repository: a repository is only put into a new folder.")
    source = wanted(repository, ref, settings()) if cwd is None else None
    with work_folder(settings().work_folder) as folder:
        if cwd is not None:
            return {**agent.work(folder, cwd), "artifacts": [], "refused": [], "changes": None}
        return _run_in(folder, agent, source)


@dataclass(frozen=True)
class Agent:
    """An agent's command line, its prompt, its variables, and the seconds it may take."""

    template: list[str]
    prompt: str
    variables: dict[str, str]
    timeout: float | None

    def work(self, folder: Path, cwd: str) -> ProcessResult:
        """Run the agent, with its prompt's file in `folder`; raises AgentFailed."""
        result = self._run(folder / "prompt.md", cwd)
        if result["exit_status"] != 0:
            said = last_lines(result["stdout"], result["stderr"])
            raise AgentFailed(f"The agent ended with exit status {result['exit_status']}; its last lines: {said}")
        return result

    def _run(self, file: Path, cwd: str) -> ProcessResult:
        """Fill in the template after it was split, so that nothing in a prompt becomes a separate argument; run it."""
        if self._has(FILE):
            file.write_bytes(self.prompt.encode("utf-8", "surrogateescape"))
        argv = [part.replace(FILE, str(file)).replace(PLACE, self.prompt) for part in self.template]
        data = None if self._has(PLACE) or self._has(FILE) else self.prompt
        try:
            return process.run(argv, cwd=cwd, env=self.variables, data=data, timeout=self.timeout)
        except ArgumentsTooLong:
            raise CommandNotStarted(
                f"The prompt of {len(self.prompt):,} characters is longer than this worker takes an argument: shorten "
                f"it, or have the worker's owner take {PLACE} out of HOWL_AGENT_COMMAND, so that it comes on standard "
                f"input, or write {FILE} there."
            ) from None
        except CommandTimedOut as error:
            raise CommandTimedOut(
                "It took longer than its task's `timeout` allows, or without one its worker's HOWL_AGENT_TIMEOUT: "
                f"{error.message}"
            ) from None

    def _has(self, place: str) -> bool:
        return any(place in part for part in self.template)


def _run_in(folder: Path, agent: Agent, source: Source | None) -> AgentResult:
    work, checkout = folder / "work", None
    work.mkdir()
    if source is not None:
        checkout = Checkout(folder, work, source, settings().checkout_limit)
        checkout.fetch()
    if not os.path.lexists(work / ARTIFACTS):
        (work / ARTIFACTS).mkdir()
    keep = partial(collect, work, brought(work), checkout, settings().artifact_limit)
    try:
        result = agent.work(folder, str(work))
    except (AgentFailed, CommandTimedOut):
        _salvage(keep)
        raise
    return {**result, **keep()}


def _salvage(keep: Callable[[], Left]) -> None:
    """Keep what a failed agent left; its failure is the outcome, even if this fails too."""
    try:
        keep()
    except HowlError as error:
        context.log(error.message)


def _checked(prompt: object) -> str:
    if not (isinstance(prompt, str) and prompt.strip() and passable(prompt)):
        raise InvalidRequest("The prompt must be a text, without NUL characters, that says what the agent is to do.")
    return prompt


def _patience(timeout: float | None) -> float | None:
    """Return the task's timeout in seconds; without it and without a time limit, the one of the worker's owner."""
    if timeout is None and not any(run.request.timelimit or ()):
        return settings().agent_timeout
    return timeout


def _template() -> list[str]:
    """Split the owner's command line into arguments; raises NotConfigured or SettingsError."""
    template = settings().agent_command
    if not template:
        raise NotConfigured(
            "This worker has no coding agent: set HOWL_AGENT_COMMAND on it, e.g. to `cursor-agent -p --force`."
        )
    parts = _split(template)
    if not parts or PLACE in parts[0] or FILE in parts[0]:
        raise SettingsError("HOWL_AGENT_COMMAND begins with no program: write the agent's there.")
    return parts


def _split(template: str) -> list[str]:
    try:
        return shlex.split(template)
    except ValueError as error:
        raise SettingsError(f"HOWL_AGENT_COMMAND cannot be read as a command line: {error}.") from None


def _variables() -> dict[str, str]:
    names = settings().agent_env
    if refused := [name for name in names if CREDENTIALS.match(name)]:
        raise SettingsError(f"HOWL_AGENT_ENV names {', '.join(refused)}, which no agent is given: take it out.")
    return {name: value for name in names if (value := environment.told(name)) is not None}
