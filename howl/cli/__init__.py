"""The `howl` command: a group that loads the file of a command when that command is used."""

import difflib
import importlib
import io
import os
import re
import sys
from typing import Any

import click

from howl import __version__
from howl.cli.ui.options import application

#: The variable that shows the traceback of an unexpected error; characters of its message that are shown; and what is
#: masked there.
TRACEBACKS, QUOTED = "HOWL_TRACEBACK", 200
PASSWORD = re.compile(r"://[^\s/@]*@")
#: Commands that log to the terminal: their log shows tracebacks.
SERVICES = ("worker", "server")

#: Commands in the order of a first session, with their lines in `howl --help`, which must not load them all. Command
#: `up` is `up` in howl/cli/up.py.
COMMANDS = {
    "up": "Run all servers on this machine, in the foreground.",
    "env": "Print where the servers are, for a shell.",
    "worker": "Run a worker.",
    "submit": "Put a task on the queue.",
    "tasks": "List, show, watch, cancel and retry tasks.",
    "artifacts": "List and get the files that tasks left behind.",
    "watch": "Watch the whole house live: workers, tasks, queues.",
    "workers": "List, show, drain and stop workers.",
    "queues": "Show what waits, who holds what, what is parked or dead.",
    "analytics": "Show how tasks, workers, queues and bursts fared.",
    "burst": "Start workers for a limited time.",
    "mcp": "Serve HOWL's tools to an MCP client.",
    "init": "Make what a real server needs: secrets, certificates, configuration.",
    "migrate": "Bring the database's tables to this version's.",
    "server": "Run the persistent side.",
    "flower": "Serve Flower, Celery's web page of workers and tasks, behind a password.",
    "doctor": "Check what this machine needs, and say what to do.",
    "backup": "Write all that stays into one archive.",
    "restore": "Put a backup back into empty servers.",
}


class CommandFiles(click.Group):
    """A group whose commands are the files of a package; `told` maps each to its help line, in order."""

    def __init__(self, *args: Any, package: str, told: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.package, self.told = package, told

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.told)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # likewise
        return _load(self.package, cmd_name) if cmd_name in self.told else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close = difflib.get_close_matches(args[0], self.told, n=1)
        if args[0] not in self.told and close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # likewise
        with formatter.section("Commands"):
            formatter.write_dl(list(self.told.items()))


class Howl(CommandFiles):
    """The whole command: it reports an unexpected error as one sentence too, with the traceback on request.

    When a command fails, it also says if this terminal still has the addresses of servers that are no longer there.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.UsageError, click.exceptions.Exit, click.Abort, EOFError, BrokenPipeError):
            raise
        except click.ClickException as error:
            if words := _outdated():
                raise click.ClickException(f"{error.format_message()} {words}") from error
            raise
        except Exception as error:
            if os.environ.get(TRACEBACKS) or ctx.invoked_subcommand in SERVICES:
                raise
            words = PASSWORD.sub("://…@", (str(error).strip().splitlines() or [""])[0])
            told = f"{type(error).__name__}: {words[:QUOTED]!r}"  # control characters written out
            raise click.ClickException(
                f"`howl {ctx.invoked_subcommand or ''}` met what nobody foresaw ({told}). Run it again with "
                f"{TRACEBACKS}=1 to see where, and `howl doctor` to see whether a server is the matter."
            ) from error


def _outdated() -> str | None:
    """Import by name, because help needs neither module."""
    try:
        settings = importlib.import_module("howl.config").load_settings()
    except click.ClickException:
        return None
    words: str | None = importlib.import_module("howl.local_stack").outdated(settings.home, settings.urls())
    return words


def _load(package: str, name: str) -> click.Command:
    """Load a command from its file; it is called `name_` there if Python has taken the name."""
    try:
        file = importlib.import_module(f"{package}.{name}")
        command: Any = getattr(file, name if hasattr(file, name) else f"{name}_")
    except ModuleNotFoundError as error:
        if (error.name or "howl").partition(".")[0] in ("howl", "workers"):
            raise
        words = " ".join([*package.replace(".cli", "").split("."), name])
        raise click.ClickException(
            f"`{words}` needs {error.name}, which is not installed here: `pip install 'howl[server]'`."
        ) from error
    return command


@click.command(cls=Howl, package="howl.cli", told=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@application
@click.version_option(__version__, message="howl %(version)s")
def main() -> None:
    """HOWL: a Celery task queue whose workers live far away and die young.

    \b
    A first look, on one machine:
        howl up                        all servers, in this terminal
        howl worker --name w1          a worker, in a second one
        howl submit command.run --args '[["uname", "-a"]]' --wait
        howl tasks list

    `howl COMMAND --help` shows examples of each command. Commands end with status 0 when all went well, 1 when
    something failed, 2 when the command line was wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character the terminal's encoding lacks must not end a command
            stream.reconfigure(errors="backslashreplace")
