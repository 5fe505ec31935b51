"""Running a command on a worker."""

from celery import shared_task

from workers import process
from workers.process import ProcessResult
from workers.rights import require_commands


@shared_task(name="command.run")
def run(
    argv: list[str],
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    input: str | None = None,  # noqa: A002 - what people know it as from subprocess
    timeout: float | None = None,
) -> ProcessResult:
    """Run a program on a worker and return its exit status and output.

    argv: the program and its arguments, passed on as they are; no shell ever sees them.
    cwd: the folder to run it in; the worker's own when not given.
    env: variables for it. Of the worker's own it sees PATH, HOME, the locale and the like, never a credential.
    input: text for its standard input, which is empty when not given.
    timeout: seconds after which it is ended; when not given, only the task's time limit ends it.

    The answer holds exit_status (negative: the signal that ended it), stdout and stderr (of each the first and last
    32,000 bytes, with a line in between that counts the rest), stdout_truncated and stderr_truncated, duration in
    seconds, and pid. An exit status other than 0 is an answer, not an error.

    What it prints is the task's log, line by line, while it runs.

    Processes that it leaves in the background are ended with it: first SIGTERM, after 2 s SIGKILL. The same happens on
    time-out, on cancel, and when the worker dies.

    Errors: CommandNotStarted (no such program or folder), CommandTimedOut (with the last lines of output),
    InvalidRequest, and on a permanent worker without HOWL_ALLOW_COMMANDS=1 CommandsNotAllowed.
    """
    require_commands("command.run")
    return process.run(argv, cwd=cwd, env=env, data=input, timeout=timeout)
