"""One idempotency key is one piece of work: what a repeated request must have in common with the first."""

from decimal import Decimal
from typing import Any

from howl.errors import InvalidRequest
from howl.models import Task

#: Columns that must be equal, by what a person calls them. Not so what only people read (the description, who submitted
#: it), nor `expires_in`, which counts from each request anew. The queue names the worker too, if there is one.
COMPARED = {
    "name": "name",
    "args": "arguments",
    "kwargs": "arguments",
    "queue": "queue or worker",
    "priority": "priority",
    "time_limit": "time limit",
}


def require_same(first: Task, row: dict[str, Any]) -> None:
    """Raise InvalidRequest, naming what differs and no values, unless a request's `row` asks for the `first` task."""
    other = [called for name, called in COMPARED.items() if not _equal(getattr(first, name), row[name])]
    if other:
        raise InvalidRequest(
            f"This idempotency key is that of task {first.task_id}, and this request differs from it in "
            f"{', '.join(dict.fromkeys(other))}: give other work a key of its own."
        )


def _equal(stored: Any, given: Any) -> bool:
    """As JSON, whose true is not 1, and in which PostgreSQL writes 1e23 out, so that it is read as another number."""
    if isinstance(stored, dict) and isinstance(given, dict):
        named = {str(name): value for name, value in given.items()}
        return stored.keys() == named.keys() and all(_equal(value, named[name]) for name, value in stored.items())
    if isinstance(stored, list) and isinstance(given, list | tuple):
        return len(stored) == len(given) and all(map(_equal, stored, given))
    if isinstance(stored, bool) or isinstance(given, bool):
        return stored is given
    if isinstance(stored, int) and isinstance(given, float):
        return Decimal(repr(given)) == stored
    return bool(stored == given)
