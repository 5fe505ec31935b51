"""Tasks counted by status."""

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from howl.models import TASK_STATUSES
from howl.queries.asking import Question, Row, rows
from howl.queries.overview import status_now


def counts(condition: ColumnElement[bool] | None = None) -> list[ColumnElement[int]]:
    """A column a status; `folded` makes one `tasks` of them."""
    extra = [] if condition is None else [condition]
    return [func.count().filter(status_now == status, *extra).label(f"tasks_{status}") for status in TASK_STATUSES]


def ask(session: Session, question: Question) -> list[Row]:
    """Rows with their counts folded."""
    return [folded(row) for row in rows(session, question)]


def ask_one(session: Session, question: Question) -> Row:
    """The only row."""
    (row,) = ask(session, question)
    return row


def folded(row: Row) -> Row:
    """The columns of `counts` as one `tasks` by status, their `total`, and `success_rate` of those that ran to an end.

    None where none did; a cancelled or expired task is neither a success nor a failure.
    """
    tasks = {status: row.get(f"tasks_{status}") or 0 for status in TASK_STATUSES}
    others = {name: value for name, value in row.items() if not name.startswith("tasks_")}
    ended = tasks["succeeded"] + tasks["failed"] + tasks["dead"]
    return others | {
        "tasks": {status: number for status, number in tasks.items() if number},
        "total": sum(tasks.values()),
        "success_rate": tasks["succeeded"] / ended if ended else None,
    }
