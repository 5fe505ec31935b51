"""How far a run is: what a task's events say of it, one after another, and how that reads to people."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

#: Events at which a run may begin anew.
BEGINNINGS = ("received", "started", "retrying", "requeued")


@dataclass
class Course:
    """How far the run is that a task's events, in the order in which they were recorded, end with.

    Of a run two ways bring news, and either may be the quicker: over NATS come `received` and what HOWL's `progress()`
    says; with the outcomes `started`, `retrying` and what Celery's `update_state` says. So not all that begins a run
    is newer than the progress known.
    """

    progress: Row | None = None
    #: The event that told it.
    _told: Row | None = None
    #: Celery's retries plus one, of the run that was last received.
    _attempt: int = 1

    def notice(self, event: Row) -> None:
        """Take in what happened next."""
        if event["kind"] == "progress":
            self.progress, self._told = {"at": event["at"], **progress(event["data"])}, event
        elif self._told is not None and event["kind"] in BEGINNINGS and self._ends(event, self._told):
            self.progress = self._told = None
        if event["kind"] == "received":
            self._attempt = _attempt(event)

    def _ends(self, event: Row, told: Row) -> bool:
        """Whether that progress was a run's before the one that this begins, or whose end it is."""
        by_outcome, kind = "state" in told["data"], event["kind"]
        attempt = _attempt(told) if by_outcome else self._attempt
        if kind == "requeued":
            return True
        if kind == "retrying":
            return _attempt(event) >= attempt
        if not by_outcome:
            return bool(kind == "received")
        return (
            event["worker_id"] != told["worker_id"]
            or _attempt(event) > attempt
            or (kind == "started" and event["data"].get("pid") != told["data"].get("pid"))
        )


def _attempt(event: Row) -> int:
    name, before = ("retries", 1) if event["kind"] == "received" else ("attempt", 0)
    number = _number(event["data"].get(name))
    return before + int(number) if number is not None else 1


def progress(data: Mapping[str, Any]) -> Row:
    """What a task said of its progress, also by Celery's own `update_state`, in whose words `current` is `done`."""
    if "state" not in data:
        return {"done": _number(data.get("done")), "total": _number(data.get("total")), "note": data.get("note")}
    told = data.get("result")
    if not isinstance(told, dict):
        return {"done": None, "total": None, "note": f"{data['state']} {_inline(told)}".rstrip()}
    done = _number(told.get("done", told.get("current")))
    note = data["state"] if done is not None else f"{data['state']} {_inline(told)}"
    return {"done": done, "total": _number(told.get("total")), "note": note}


def in_words(told: Mapping[str, Any]) -> str:
    """`34/100, fetching`: what is known of it, as it was said."""
    done, total = (_written(told.get(name)) for name in ("done", "total"))
    count = f"{done}/{total}" if done and total else done
    return ", ".join(str(part) for part in (count, told.get("note")) if part)


def log_lines(events: Iterable[Row]) -> list[str]:
    """The lines that these events' tasks wrote; where some were left out, a line says how many."""
    lines: list[str] = []
    for event in events:
        if event["kind"] == "log":
            lines += lines_of(event["data"])
    return lines


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """The lines of one `log` event."""
    dropped, lines = data.get("dropped"), data.get("lines")
    left_out = [f"… {dropped:,} lines left out"] if isinstance(dropped, int) and dropped > 0 else []
    return left_out + ([str(line) for line in lines] if isinstance(lines, list) else [])


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


def _written(number: float | None) -> str:
    """`1,234`, `0.5`; nothing for None."""
    if number is None:
        return ""
    return f"{round(number):,}" if float(number).is_integer() else f"{number:,.2f}"


def _inline(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
