"""Kinds of options that several commands share."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from howl.durations import parse_duration

#: A record says when, how bad, who, and what, in one line.
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Duration(click.ParamType[float]):
    """A length of time as people write it; its value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class TimeRange(Duration):
    """The same, checked and passed on as it was written."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        super().convert(value, param, ctx)
        return value


class Names(click.ParamType[tuple[str, ...]]):
    """Names between commas."""

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
    """For this process and those that it starts; its module may be in the folder where somebody names it here."""
    if name is None:
        return
    os.environ["HOWL_APP"] = name
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: no file there is to take a library's place


application: Decorator = click.option(
    "-A", "--app", metavar="APP", callback=_choose_app, expose_value=False,
    help="A Celery application of your own, as `celery -A` takes it; by default HOWL_APP, or HOWL's own.",
)  # fmt: skip
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
verbose: Decorator = click.option("-v", "--verbose", is_flag=True, help="Log every step.")


def since(default: str | None = None) -> Decorator:
    """The option --since; `default` is a length of time such as 24h."""
    return click.option(
        "--since",
        type=TIME_RANGE,
        default=default,
        show_default=default is not None,
        metavar="TIME",
        help="How far to look back: 30m, 24h, 7d.",
    )


def configure_logging(*, verbosely: bool) -> None:
    """For entry points that stay: what happens, or with `verbosely` every step."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("howl").setLevel(logging.DEBUG if verbosely else logging.INFO)
    logging.getLogger("alembic").setLevel(logging.INFO if verbosely else logging.WARNING)


def silence_asyncio() -> None:
    """For commands that end by themselves: it warns of every TLS connection of nats-py that a server closes."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)
