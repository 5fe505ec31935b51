"""Ids and task names that people choose: those that cannot be recorded are refused before publishing."""

import uuid
from collections.abc import Iterator
from typing import Any

from howl.errors import InvalidRequest
from howl.outcomes import NAME_LIMIT, is_id

#: Fields of a message's headers, and of a signature's options, with ids or the task's name.
IDS = ("id", "task_id", "group", "group_id", "root_id", "parent_id", "task")
#: Most nested levels of signatures that are checked.
LEVELS = 50


def check_signatures(given: Any) -> None:
    """Convert the ids of signatures, and of those within them, to text; raises InvalidRequest."""
    for signature in _signatures(given, LEVELS):
        check_ids(signature)
        options = signature.get("options")
        if isinstance(options, dict):
            check_ids(options)


def _signatures(given: Any, levels: int) -> Iterator[dict[str, Any]]:
    """Yield the signatures in a value; arguments of signatures, which may be of any size, are not searched."""
    if levels == 0:
        return
    if isinstance(given, list | tuple):
        for each in given:
            yield from _signatures(each, levels - 1)
    elif isinstance(given, dict) and "task" in given:
        yield given
        options, parts = given.get("options") or {}, given.get("kwargs") or {}
        for name in ("link", "link_error", "chord", "chain"):
            yield from _signatures(options.get(name), levels - 1)
        if given.get("subtask_type") in ("chain", "group", "chord"):
            for name in ("tasks", "header", "body"):
                yield from _signatures(parts.get(name), levels - 1)


def check_ids(said: dict[str, Any]) -> None:
    """Convert the ids in headers or options to text; raises InvalidRequest."""
    for name in IDS:
        if said.get(name):
            said[name] = recordable(said[name])


def recordable(value: Any) -> str:
    """Return an id in the form that can be recorded; raises InvalidRequest if there is none."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if is_id(value):
        return value
    raise InvalidRequest(
        f"{_shown(value)} cannot be the id or name of a task: give a text of 1 to {NAME_LIMIT} characters "
        "without NUL, or a UUID."
    )


def texts(given: Any) -> Any:
    """Return lists and objects with the UUIDs in them as text."""
    if isinstance(given, uuid.UUID):
        return str(given)
    if isinstance(given, list | tuple | set):
        return [texts(each) for each in given]
    if isinstance(given, dict):
        return {name: texts(value) for name, value in given.items()}
    return given


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}…"
