"""Tasks that run a command on one worker, or as shards on many."""

from typing import Any

from celery import Task, chord, shared_task

from howl.node_names import worker_id_of
from howl.outcomes import JOIN_ALL
from workers import sharding
from workers.checkout.permissions import require_commands
from workers.process import process
from workers.process.process import ProcessResult
from workers.sharding import Report, Summary


@shared_task(name="command.run")
def run(
    argv: list[str],
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    input: str | None = None,  # noqa: A002 - the name that people know from subprocess
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


@shared_task(name="command.shards", bind=True)
def run_shards(
    self: Task,
    argv: list[str],
    shards: int,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float | None = None,
) -> Summary:
    """Run a program as shards, on whichever workers are free, and return what they come to together.

    argv: as for command.run. In it and in the values of env, {shard} stands for 1, 2 and so on, {shards} for their
    number, and {junit} for the path of a file in a folder of the shard's own, to which a test suite writes its report
    in the JUnit format. Other braces are left as they are.
    shards: how many, up to 256.
    cwd, env: as for command.run, on each worker.
    timeout: seconds after which a shard is ended; the task's own time limits hold for each shard as well.

    The answer holds shards (how many), succeeded (how many), failed (of each shard that did not succeed: shard, worker,
    exit_status, error, last_lines), exit_statuses (of shard 1, 2, ...), tests (tests, failures, errors, skipped, time)
    and failing (shard, name and message of tests that failed; failing_left_out counts those there was no room for) if
    there were JUnit files, slowest (shard, duration), and duration, the seconds of all shards together.

    A shard succeeds when it ends with exit status 0 and leaves the JUnit file it was asked for. What becomes of one
    that does not, that takes too long or is cancelled is told in the answer, and nothing of the others is lost. A shard
    whose worker dies is run again. Cancelling this task cancels its shards.

    Errors: InvalidRequest.
    """
    sharding.check(argv, 1, shards, cwd, env, timeout)
    hard, soft = self.request.timelimit or (None, None)
    place = _place(self)
    parts = [run_shard.s(argv, shard, shards, cwd, env, timeout) for shard in range(1, shards + 1)]
    for part in parts:
        part.set(time_limit=hard, soft_time_limit=soft, **place)
    return self.replace(chord(parts, summarize.s().set(headers=JOIN_ALL, **place)))


@shared_task(name="command.shard", bind=True)
def run_shard(
    self: Task,
    argv: list[str],
    shard: int,
    shards: int,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float | None = None,
) -> Report:
    """Run one shard of command.shards, which alone sends this, and return how it ended."""
    sharding.check(argv, shard, shards, cwd, env, timeout)
    require_commands("command.shard")
    return sharding.run(argv, shard, shards, cwd, env, timeout) | {"worker": _worker_id(self)}


@shared_task(name="command.summary")
def summarize(reports: list[Any]) -> Summary:
    """Return what the shards of command.shards, which alone sends this, come to together."""
    return sharding.summary(reports)


def _place(task: Task) -> dict[str, Any]:
    """Return the queue and priority of this task, for its parts."""
    came = task.request.delivery_info or {}
    return {"queue": came.get("routing_key"), "priority": came.get("priority")}


def _worker_id(task: Task) -> str | None:
    """Return the id of the worker that runs this task; None outside a worker."""
    return worker_id_of(task.request.hostname) if task.request.hostname else None
