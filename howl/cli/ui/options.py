"""Options and option types that several commands share."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from howl.durations import parse_duration

#: Format of log records: time, level, logger and message, on one line.
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Duration(click.ParamType[float]):
    """A length of time such as 30m; its value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class TimeRange(Duration):
    """A length of time that is checked and passed on as it was written."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        super().convert(value, param, ctx)
        return value


class Names(click.ParamType[tuple[str, ...]]):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in value.split(","))
        if not all(names):
            self.fail("write names with a comma between each two.", param, ctx)
        return names


DURATION = Duration()
TIME_RANGE = TimeRange()
NAMES = Names()

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _choose_app(_: click.Context, __: click.Parameter, name: str | None) -> None:
    """Set the application for this process and its children; its module may be in the current folder."""
    if name is None:
        return
    os.environ["HOWL_APP"] = name
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: no file there may take a library's place


application: Decorator = click.option(
    "-A", "--app", metavar="APP", callback=_choose_app, expose_value=False,
    help="A Celery application of your own, as `celery -A` takes it; by default HOWL_APP, or HOWL's own.",
)  # fmt: skip
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
verbose: Decorator = click.option("-v", "--verbose", is_flag=True, help="Log every step.")


def since(default: str | None = None) -> Decorator:
    """Return the option --since; `default` is a length of time such as 24h."""
    return click.option(
        "--since",
        type=TIME_RANGE,
        default=default,
        show_default=default is not None,
        metavar="TIME",
        help="How far to look back: 30m, 24h, 7d.",
    )


def configure_logging(*, verbosely: bool) -> None:
    """Configure logging for long-running commands: what happens, or with `verbosely` every step."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("howl").setLevel(logging.DEBUG if verbosely else logging.INFO)
    logging.getLogger("alembic").setLevel(logging.INFO if verbosely else logging.WARNING)


def silence_asyncio() -> None:
    """Silence asyncio in short commands: it warns of every TLS connection of nats-py that a server closes."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)
