"""`howl submit`: put a task on the queue, and wait for it if asked to."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import click

import howl
from howl.cli.options import DURATION, application, as_json
from howl.cli.output import Column, emit
from howl.cli.person import person
from howl.cli.waiting import wait_for
from howl.config import load_settings
from howl.db import session
from howl.submit import TaskRequest, known_tasks
from howl.submit import submit as put_on_queue

TASK_COLUMNS = (Column("name", "task"), Column("signature", "takes", folds=True), Column("summary", "what", folds=True))


class Arguments(click.ParamType[Any]):
    """A JSON list or object: as it stands, in a file (`@path`), or on standard input (`-`)."""

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
@click.option("--list", "listing", is_flag=True, help="Show the tasks that can be submitted.")
@application
@as_json
def submit(
    name: str | None, arguments: Any, wait: bool, timeout: float | None, listing: bool, as_json: bool, **given: Any
) -> None:
    """Put a task on the queue.

    Its id is printed. With --wait its result is, on standard output, the rest going to standard error; the exit
    status is 1 when the task failed. Ctrl-C ends the waiting, not the task.

    \b
    Examples:
        howl submit --list
        howl submit command.run --args '[["uname", "-a"]]' --wait
        howl submit web.fetch --args '{"url": "https://example.org"}' --priority 0
        howl submit agent.run --args @prompt.json --worker github-worker-1 --time-limit 30m
    """
    if listing:
        emit([_described(name, task) for name, task in known_tasks(howl.app).items()], as_json, columns=TASK_COLUMNS)
        return
    if name is None:
        raise click.UsageError("Name a task; `howl submit --list` shows those there are.")
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait.")
    task_id = _submit(_request(name, arguments, given))
    if wait:
        wait_for(task_id, timeout, as_json)
    elif as_json:
        emit({"task_id": task_id}, as_json)
    else:
        click.echo(task_id)


def _submit(request: TaskRequest) -> str:
    with session(load_settings().database()) as opened:
        return put_on_queue(request, opened, howl.app)


def _request(name: str, arguments: Any, given: dict[str, Any]) -> TaskRequest:
    by_name = isinstance(arguments, dict)
    return TaskRequest(
        name=name,
        args=[] if by_name else arguments,
        kwargs=arguments if by_name else {},
        submitted_by=person(),
        **given,
    )


def _described(name: str, task: Any) -> dict[str, Any]:
    documented = (inspect.getdoc(task.run) or "").partition("\n")[0]
    takes = inspect.signature(task.run).replace(return_annotation=inspect.Signature.empty)
    return {"name": name, "signature": str(takes), "summary": documented}
