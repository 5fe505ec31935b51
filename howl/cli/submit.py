"""`howl submit`: put a task on the queue, and wait for it on request."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import click

import howl
from howl.cli.ui import formats
from howl.cli.ui.options import DURATION, application, as_json
from howl.cli.ui.output import Column, emit
from howl.cli.ui.submitter import person
from howl.cli.ui.wait import wait_for
from howl.config import load_settings
from howl.connections.postgres import session
from howl.models import Task
from howl.outcomes import FINAL_RANK
from howl.queries import overview
from howl.submission import TaskRequest, known_tasks
from howl.submission import submit as put_on_queue
from howl.submit_hints import fits, signature_of

TASK_COLUMNS = (Column("name", "task"), Column("signature", "takes", folds=True), Column("summary", "what", folds=True))


class Arguments(click.ParamType[Any]):
    """A JSON list or object: given inline, in a file (`@path`), or on standard input (`-`)."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            arguments = json.loads(_text_of(value))
        except (OSError, ValueError, RecursionError) as error:
            self.fail(f"it cannot be read as JSON: {error}.", param, ctx)
        if not isinstance(arguments, list | dict):
            self.fail("write a list for arguments by position, or an object for arguments by name.", param, ctx)
        return arguments


def _text_of(value: str) -> str:
    if value == "-":
        return sys.stdin.read()
    return Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value


@click.command()
@click.argument("name", required=False)
@click.argument("named", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--args", "arguments", type=Arguments(), default=[], metavar="JSON",
    help="A list by position, an object by name; @FILE reads a file, - standard input.",
)  # fmt: skip
@click.option("--queue", metavar="QUEUE", help="The queue it goes to.")
@click.option("--worker", "worker_id", metavar="WORKER", help="The one worker that shall run it.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 comes first.")
@click.option("--time-limit", type=DURATION, metavar="TIME", help="Kill it when it runs longer than this.")
@click.option("--expires", "expires_in", type=DURATION, metavar="TIME", help="Never start it later than this from now.")
@click.option("--idempotency-key", metavar="KEY", help="Submitting the same again under it gives the same task.")
@click.option("--description", metavar="TEXT", help="What it is for, in words.")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and print its result.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="How long to wait at most; the task goes on.")
@click.option("--check", is_flag=True, help="With --wait: end with the exit status that its result tells.")
@click.option("--list", "listing", is_flag=True, help="Show the tasks that can be submitted.")
@application
@as_json
def submit(
    name: str | None,
    named: tuple[str, ...],
    arguments: Any,
    wait: bool,
    timeout: float | None,
    check: bool,
    listing: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Put a task on the queue.

    Arguments by name may be written NAME=VALUE: as text where the task takes text, else as JSON. Its id is printed.
    With --wait its result is, on standard output, the rest going to standard error; the exit status is 1 when the task
    failed. A command that ends with another status than 0 has not failed: with --check, that is the exit status here
    too (128 and the signal's number of one that a signal ended). Ctrl-C ends the waiting, not the task.

    \b
    Examples:
        howl submit --list
        howl submit command.run --args '[["uname", "-a"]]' --wait
        howl submit command.run argv='["make", "test"]' cwd=/srv --wait --check
        howl submit web.fetch url=https://example.org --priority 0
        howl submit agent.run --args @prompt.json --worker github-worker-1 --time-limit 30m
    """
    if listing:
        emit([_described(name, task) for name, task in known_tasks(howl.app).items()], as_json, columns=TASK_COLUMNS)
        return
    if name is None:
        raise click.UsageError("Name a task; `howl submit --list` shows those there are.")
    if (timeout is not None or check) and not wait:
        raise click.UsageError(f"{'--check' if check else '--timeout'} goes with --wait.")
    task_id = _submit(_request(name, arguments, _by_name(name, named), given))
    if wait:
        ended = wait_for(task_id, timeout, as_json)
        if check:
            sys.exit(_exit_status(ended["result"]))
    elif as_json:
        emit({"task_id": task_id}, as_json)
    else:
        click.echo(task_id)


def _submit(request: TaskRequest) -> str:
    with session(load_settings().database()) as opened:
        served = overview.served_queues(opened)  # first: a failure after the submission would hide the task's id
        task_id = put_on_queue(request, opened, howl.app)
        task = opened.get_one(Task, task_id)
    if task.rank < FINAL_RANK and task.worker_id is None and task.queue not in served:
        click.echo(formats.visible(_unserved(task.queue)), err=True)
    return task_id


def _unserved(queue: str | None) -> str:
    return f"No active worker takes tasks from queue {queue!r}: it waits until one does (`howl worker --queues NAME`)."


def _request(name: str, arguments: Any, by_name: dict[str, Any], given: dict[str, Any]) -> TaskRequest:
    args, kwargs = ([], arguments) if isinstance(arguments, dict) else (arguments, {})
    if twice := kwargs.keys() & by_name:
        raise click.UsageError(f"{min(twice)} is given twice: by --args, and by name.")
    return TaskRequest(name=name, args=args, kwargs=kwargs | by_name, submitted_by=person(), **given)


def _by_name(task: str, named: tuple[str, ...]) -> dict[str, Any]:
    """Parse arguments written as `NAME=VALUE`; where the task takes text, the value is kept as it is."""
    given = dict(word.partition("=")[::2] for word in named)
    if len(given) < len(named) or not all(map(str.isidentifier, given)) or not all("=" in word for word in named):
        raise click.UsageError("Write arguments as NAME=VALUE, each name once, or as JSON with --args.")
    known = known_tasks(howl.app).get(task) if given else None
    parameters = signature_of(known.run).parameters if known else {}
    return {name: _value(parameters.get(name), text) for name, text in given.items()}


def _value(parameter: inspect.Parameter | None, text: str) -> Any:
    wanted = None if parameter is None else parameter.annotation
    if wanted not in (None, inspect.Parameter.empty, Any) and not isinstance(wanted, str) and fits(wanted, text):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _exit_status(result: Any) -> int:
    """Return the status as a shell would: 128 plus the signal's number for a command that a signal ended."""
    status = result.get("exit_status") if isinstance(result, dict) else None
    if not isinstance(status, int):
        raise click.ClickException("The task has succeeded, and its result has no exit_status: leave out --check.")
    return status if status >= 0 else 128 - status


def _described(name: str, task: Any) -> dict[str, Any]:
    documented = (inspect.getdoc(task.run) or "").partition("\n")[0]
    takes = inspect.signature(task.run).replace(return_annotation=inspect.Signature.empty)
    return {"name": name, "signature": str(takes), "summary": documented}
