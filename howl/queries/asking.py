"""Helpers shared by all queries: plain rows as results, and checks of their arguments."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Session

from howl.durations import parse_duration
from howl.errors import InvalidRequest
from howl.outcomes import NAME_LIMIT

Row = dict[str, Any]
Question = Select[*tuple[Any, ...]]


def rows(session: Session, question: Question) -> list[Row]:
    """Return each row as a dict of its columns."""
    return [dict(row) for row in session.execute(question).mappings()]


def one_of(what: str, value: str, allowed: Collection[str]) -> str:
    """Return the value; raise InvalidRequest, naming the allowed values, unless it is one of them."""
    if value not in allowed:
        raise InvalidRequest(f"{what} must be one of {', '.join(allowed)}.")
    return value


def text(what: str, value: str) -> str:
    """Return the value; raise InvalidRequest unless PostgreSQL can compare with it and an error can show it."""
    if not 0 < len(value) <= NAME_LIMIT or not value.isprintable():
        raise InvalidRequest(f"{what} must have 1 to {NAME_LIMIT} characters, all of them printable.")
    return value


def moment_before_now(span: str) -> datetime:
    """Return the time that lies `span` before now; raise InvalidRequest unless `span` is a length of time."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(span))
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None
