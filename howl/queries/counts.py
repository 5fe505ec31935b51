"""Tasks counted by status."""

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from howl.models import TASK_STATUSES
from howl.queries.asking import Question, Row, rows
from howl.queries.overview import status_now


def counts(condition: ColumnElement[bool] | None = None) -> list[ColumnElement[int]]:
    """Return one count column per status; `folded` turns them into one `tasks`."""
    extra = [] if condition is None else [condition]
    return [func.count().filter(status_now == status, *extra).label(f"tasks_{status}") for status in TASK_STATUSES]


def ask(session: Session, question: Question) -> list[Row]:
    """Return the rows of a query with their counts folded."""
    return [folded(row) for row in rows(session, question)]


def ask_one(session: Session, question: Question) -> Row:
    """Return the only row of a query, with its counts folded."""
    (row,) = ask(session, question)
    return row


def folded(row: Row) -> Row:
    """Fold the columns of `counts` into `tasks` by status, `total`, and `success_rate` of those that ran to an end.

    The rate is None where none did; a cancelled or expired task is neither a success nor a failure.
    """
    tasks = {status: row.get(f"tasks_{status}") or 0 for status in TASK_STATUSES}
    others = {name: value for name, value in row.items() if not name.startswith("tasks_")}
    ended = tasks["succeeded"] + tasks["failed"] + tasks["dead"]
    return others | {
        "tasks": {status: number for status, number in tasks.items() if number},
        "total": sum(tasks.values()),
        "success_rate": tasks["succeeded"] / ended if ended else None,
    }
