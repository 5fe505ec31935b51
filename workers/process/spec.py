"""Specification of a program: arguments that the operating system accepts, and an environment by allow-list."""

import math
import os
import re
from collections.abc import Mapping
from typing import TypedDict

from howl.errors import InvalidRequest

#: Names of the worker's variables that a program sees; no credential is among them.
PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TERM|TMPDIR|VIRTUAL_ENV|(DY)?LD_LIBRARY_PATH"
    r"|SSL_CERT_(FILE|DIR)|CI|GITHUB_ACTIONS|RUNNER_TEMP"
)


class Order(TypedDict):
    """The order that tells the supervisor what to start."""

    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    #: Limits by their names in the module `resource`.
    limits: dict[str, int]


def order(
    argv: list[str], env: Mapping[str, str] | None, cwd: str | None, limits: Mapping[str, int] | None = None
) -> Order:
    """Return an order for a program that sees the allowed variables of the worker, and `env`.

    Raises InvalidRequest for arguments that no program can be started with; a task's arguments may come from anybody.
    """
    _check(argv, env or {}, cwd)
    return {"argv": argv, "env": {**passed_on(), **(env or {})}, "cwd": cwd, "limits": dict(limits or {})}


def passed_on() -> dict[str, str]:
    """Return the worker's variables that programs see."""
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def check_timeout(timeout: object) -> None:
    """Raise InvalidRequest unless this is None or a number of seconds."""
    if not (timeout is None or (isinstance(timeout, int | float) and 0 < timeout < math.inf)):
        raise InvalidRequest("timeout must be a number of seconds above 0.")


def _check(argv: object, env: object, cwd: object) -> None:
    if not (isinstance(argv, list | tuple) and argv and argv[0] and all(map(passable, argv))):
        raise InvalidRequest("argv must be a list of texts without NUL characters, beginning with the program.")
    if not (isinstance(env, Mapping) and all(map(_is_variable, env.items()))):
        raise InvalidRequest("env must map names of variables to texts without NUL characters.")
    if not (cwd is None or passable(cwd)):
        raise InvalidRequest("cwd must be the path of a folder on the worker.")


def _is_variable(item: tuple[object, object]) -> bool:
    name, value = item
    return passable(name) and passable(value) and bool(name) and "=" not in str(name)


def passable(value: object) -> bool:
    """Return whether the operating system accepts this as an argument."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
