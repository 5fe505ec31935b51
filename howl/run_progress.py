"""Progress of a run, from a task's events, and its text for people."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

#: Kinds of events at which a new run may begin.
BEGINNINGS = ("received", "started", "retrying", "requeued")


@dataclass
class Course:
    """The progress of the last run in a task's events, taken in the order in which they were recorded.

    News of a run comes two ways, and either may be the faster: over NATS `received` and HOWL's `progress()`; with the
    outcomes `started`, `retrying` and Celery's `update_state`. So an event that begins a run is not always newer than
    the known progress.
    """

    progress: Row | None = None
    #: The event that reported it.
    _told: Row | None = None
    #: Celery's retries plus one, of the run that was last received.
    _attempt: int = 1

    def notice(self, event: Row) -> None:
        """Apply the next event."""
        if event["kind"] == "progress":
            self.progress, self._told = {"at": event["at"], **progress(event["data"])}, event
        elif self._told is not None and event["kind"] in BEGINNINGS and self._ends(event, self._told):
            self.progress = self._told = None
        if event["kind"] == "received":
            self._attempt = _attempt(event)

    def _ends(self, event: Row, told: Row) -> bool:
        """Return whether that progress is of an earlier run than this event begins, or of the run that it ends."""
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
    """Return a task's progress, also as reported by Celery's `update_state`, whose `current` is `done`."""
    if "state" not in data:
        return {"done": _number(data.get("done")), "total": _number(data.get("total")), "note": data.get("note")}
    told = data.get("result")
    if not isinstance(told, dict):
        return {"done": None, "total": None, "note": f"{data['state']} {_inline(told)}".rstrip()}
    done = _number(told.get("done", told.get("current")))
    note = data["state"] if done is not None else f"{data['state']} {_inline(told)}"
    return {"done": done, "total": _number(told.get("total")), "note": note}


def in_words(told: Mapping[str, Any]) -> str:
    """Return progress as text, such as `34/100, fetching`, from what is known of it."""
    done, total = (_written(told.get(name)) for name in ("done", "total"))
    count = f"{done}/{total}" if done and total else done
    return ", ".join(str(part) for part in (count, told.get("note")) if part)


def log_lines(events: Iterable[Row]) -> list[str]:
    """Return the log lines in these events; where some were left out, a line says how many."""
    lines: list[str] = []
    for event in events:
        if event["kind"] == "log":
            lines += lines_of(event["data"])
    return lines


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the lines of one `log` event."""
    dropped, lines = data.get("dropped"), data.get("lines")
    left_out = [f"… {dropped:,} lines left out"] if isinstance(dropped, int) and dropped > 0 else []
    return left_out + ([str(line) for line in lines] if isinstance(lines, list) else [])


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


def _written(number: float | None) -> str:
    """Return a number as text, such as `1,234` or `0.50`; empty for None."""
    if number is None:
        return ""
    return f"{round(number):,}" if float(number).is_integer() else f"{number:,.2f}"


def _inline(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
