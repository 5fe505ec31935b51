"""Giving work to a headless coding agent, whichever one this worker's owner has set up."""

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import shared_task

from howl.errors import AgentFailed, CommandTimedOut, HowlError, InvalidRequest, NotConfigured, SettingsError
from howl.worker import context, environment
from workers import process
from workers.checkout import ARTIFACTS, Checkout
from workers.collect import Left, brought, collect
from workers.order import check_timeout
from workers.output import last_lines
from workers.process import ProcessResult
from workers.repository import Source, wanted
from workers.rights import require_commands, settings
from workers.workfolder import work_folder

PLACE = "{prompt}"

#: Names that an agent is never given, whatever HOWL_AGENT_ENV says: they lead to the server.
CREDENTIALS = re.compile("(HOWL|REDIS|NATS|POSTGRES|CELERY)_|PG[A-Z]+$")


class AgentResult(ProcessResult, Left):
    """How an agent ended, and what it left."""


@shared_task(name="agent.run")
def run(
    prompt: str,
    timeout: float | None = None,
    cwd: str | None = None,
    repository: str | None = None,
    ref: str | None = None,
) -> AgentResult:
    """Let a coding agent work on a prompt and return what it said, and what it left.

    prompt: what the agent is to do, as one text; it reaches the agent unchanged, as one argument and without a shell.
    timeout: seconds after which the agent is ended; when not given, only the task's time limit ends it.
    cwd: a folder on the worker to work in. When not given, the agent works in a new one, which is deleted afterwards.
    repository: an address (https://...) of a repository that is put into the new folder first; the worker's owner may
    have set one (HOWL_AGENT_REPOSITORY).
    ref: its branch, tag or commit; its default branch when not given.

    The worker's owner names the agent in HOWL_AGENT_COMMAND, e.g. `cursor-agent -p {prompt} --force`, and in
    HOWL_AGENT_ENV the variables it needs, e.g. `CURSOR_API_KEY`; other than these it sees what command.run passes on.

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
    agent = Agent(_command_line(prompt), _variables(), timeout)
    if cwd is not None:
        if repository is not None or ref is not None:
            raise InvalidRequest("Give cwd or repository: a repository is only put into a new folder.")
        return {**agent.work(cwd), "artifacts": [], "refused": [], "changes": None}
    source = wanted(repository, ref, settings())
    with work_folder(settings().work_folder) as folder:
        return _run_in(folder, agent, source)


@dataclass(frozen=True)
class Agent:
    """The agent's program with its prompt; seconds it may take."""

    argv: list[str]
    variables: dict[str, str]
    timeout: float | None

    def work(self, folder: str) -> ProcessResult:
        """Run it; raises AgentFailed."""
        result = process.run(self.argv, cwd=folder, env=self.variables, timeout=self.timeout)
        if result["exit_status"] != 0:
            said = last_lines(result["stdout"], result["stderr"])
            raise AgentFailed(f"The agent ended with exit status {result['exit_status']}; its last lines: {said}")
        return result


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
        result = agent.work(str(work))
    except (AgentFailed, CommandTimedOut):
        _salvage(keep)
        raise
    return {**result, **keep()}


def _salvage(keep: Callable[[], Left]) -> None:
    """Keep what a failed agent left; that it failed is the outcome, whatever comes of this."""
    try:
        keep()
    except HowlError as error:
        context.log(error.message)


def _command_line(prompt: str) -> list[str]:
    """The owner's template, split first and filled in afterwards: nothing in a prompt can become an argument."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("The prompt must be a text that says what the agent is to do.")
    template = settings().agent_command
    if not template:
        raise NotConfigured(
            "This worker has no coding agent: set HOWL_AGENT_COMMAND on it, e.g. to `cursor-agent -p {prompt} --force`."
        )
    parts = _split(template)
    if not any(PLACE in part for part in parts[1:]):
        raise SettingsError(
            f"HOWL_AGENT_COMMAND has no {PLACE} among its arguments: write it where the prompt belongs."
        )
    return [part.replace(PLACE, prompt) for part in parts]


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
