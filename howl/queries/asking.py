"""What all questions have in common: answers as plain rows, and what may be asked."""

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
    """Each row as a dict of its columns."""
    return [dict(row) for row in session.execute(question).mappings()]


def one_of(what: str, value: str, allowed: Collection[str]) -> str:
    """Raise InvalidRequest, naming what is allowed, unless the value is."""
    if value not in allowed:
        raise InvalidRequest(f"{what} must be one of {', '.join(allowed)}.")
    return value


def text(what: str, value: str) -> str:
    """What PostgreSQL can compare with and an error can show; raises InvalidRequest."""
    if not 0 < len(value) <= NAME_LIMIT or not value.isprintable():
        raise InvalidRequest(f"{what} must have 1 to {NAME_LIMIT} characters, all of them printable.")
    return value


def moment_before_now(span: str) -> datetime:
    """Raise InvalidRequest for what is no length of time."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(span))
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None
