"""Giving work to a headless coding agent, whichever one this worker's owner has set up."""

import os
import re
import shlex

from celery import shared_task

from howl.errors import AgentFailed, InvalidRequest, NotConfigured, SettingsError
from workers import process
from workers.output import last_lines
from workers.process import ProcessResult
from workers.rights import require_commands, settings

PLACE = "{prompt}"

#: Names that an agent is never given, whatever HOWL_AGENT_ENV says: they lead to the server.
CREDENTIALS = re.compile("(HOWL|REDIS|NATS|POSTGRES|CELERY)_|PG[A-Z]+$")


@shared_task(name="agent.run")
def run(prompt: str, timeout: float | None = None, cwd: str | None = None) -> ProcessResult:
    """Let a coding agent work on a prompt and return what it said.

    prompt: what the agent is to do, as one text; it reaches the agent unchanged, as one argument and without a shell.
    timeout: seconds after which the agent is ended; when not given, only the task's time limit ends it.
    cwd: the folder it works in; the worker's own when not given.

    The worker's owner names the agent in HOWL_AGENT_COMMAND, e.g. `cursor-agent -p {prompt} --force`, and in
    HOWL_AGENT_ENV the variables it needs, e.g. `CURSOR_API_KEY`; other than these it sees what command.run passes on.

    The answer is that of command.run, and so is the log. Unlike there, an exit status other than 0 is an error,
    AgentFailed, with the agent's last lines: work that was not done is a failed task. The agent's whole process tree
    ends with it.

    Errors: AgentFailed, CommandTimedOut, CommandNotStarted, NotConfigured (no agent on this worker), InvalidRequest,
    and on a permanent worker without HOWL_ALLOW_COMMANDS=1 CommandsNotAllowed.
    """
    require_commands("agent.run")
    result = process.run(_command_line(prompt), cwd=cwd, env=_variables(), timeout=timeout)
    if result["exit_status"] != 0:
        said = last_lines(result["stderr"], result["stdout"])
        raise AgentFailed(f"The agent ended with exit status {result['exit_status']}; its last lines: {said}")
    return result


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
    return {name: os.environ[name] for name in names if name in os.environ}
