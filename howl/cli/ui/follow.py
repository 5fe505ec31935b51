"""Following tasks: polls of the record, a few per second, until all of them have ended."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from howl.connections.postgres import session
from howl.errors import UnknownTask
from howl.outcomes import FINAL_STATUSES
from howl.queries import task_events
from howl.queries.task_events import events_after, newest_events, standings
from howl.run_progress import Course

Row = dict[str, Any]

#: Seconds between two polls of the record, first and later: short at first, since most tasks are short; later still
#: often enough that output is seen while it is news. A poll is two small statements.
FIRST_LOOK, LAST_LOOK = 0.05, 0.15
#: Seconds within which an event may become visible after one with a higher id.
OVERLAP = 3.0
#: A task's end takes another path than its last events. To receive those, wait this many seconds without an event, or
#: this many in all.
SILENCE, LINGER = 0.3, 2.0
#: Kinds of events that prove that a task's events arrive at all.
WORDS = ("received", "progress", "log")


@dataclass
class Followed:
    """One followed task: its row, its progress, and whether it has ended and its events have all been waited for."""

    task_id: str
    row: Row
    course: Course = field(default_factory=Course)
    is_over: bool = False
    has_spoken: bool = False
    #: Monotonic seconds at which its end, and its last event, were seen.
    ended_at: float | None = None
    heard_at: float = 0.0

    @property
    def progress(self) -> Row | None:
        return self.course.progress

    def notice(self, event: Row) -> None:
        self.course.notice(event)
        self.has_spoken = self.has_spoken or event["kind"] in WORDS
        self.heard_at = time.monotonic()

    def stand(self, row: Row) -> None:
        self.row, now = row, time.monotonic()
        if row["status"] not in FINAL_STATUSES:
            self.ended_at = None  # queued again
            return
        if self.ended_at is None:
            self.ended_at = now
        quiet = now - max(self.ended_at, self.heard_at) >= SILENCE
        self.is_over = self.is_over or not self.has_spoken or quiet or now - self.ended_at >= LINGER


@dataclass
class Look:
    """One poll: the tasks as they are now, the events since the previous poll, and the tasks over since then."""

    tasks: list[Followed]
    events: list[Row]
    over: list[Followed]

    @property
    def going_on(self) -> list[Followed]:
        return [task for task in self.tasks if not task.is_over]


def follow(url: str, task_ids: Sequence[str], timeout: float | None = None) -> Iterator[Look]:
    """Poll until all these tasks, which must be recorded, are over, or `timeout` seconds have passed.

    Raises DatabaseUnavailable.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    tasks: dict[str, Followed] = {}
    feed = Feed(list(task_ids))
    pause = FIRST_LOOK
    while True:
        look = _look(url, feed, tasks)
        yield look
        left = pause if deadline is None else deadline - time.monotonic()
        if not look.going_on or left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(pause * 1.3, LAST_LOOK)


def _look(url: str, feed: "Feed", tasks: dict[str, Followed]) -> Look:
    over = {task_id for task_id, task in tasks.items() if task.is_over}
    with session(url) as opened:
        # In this order: of a task that has ended, all events recorded by then are read.
        rows = {row["task_id"]: row for row in standings(opened, feed.task_ids)}
        events = feed.read(opened)
    if missing := set(feed.task_ids) - rows.keys():
        raise UnknownTask(f"Task {missing.pop()} is no longer recorded: somebody had it forgotten.")
    for task_id in feed.task_ids:
        tasks.setdefault(task_id, Followed(task_id, rows[task_id]))
    for event in events:
        tasks[event["task_id"]].notice(event)
    for task_id, row in rows.items():
        tasks[task_id].stand(row)
    return Look(
        [*tasks.values()], events, [task for task in tasks.values() if task.is_over and task.task_id not in over]
    )


@dataclass
class Feed:
    """The events of some tasks, each once, beginning with the newest past ones."""

    task_ids: list[str]
    #: Events up to this id are not queried again; None before the first poll.
    floor: int | None = None
    #: Later events that were seen, with the monotonic seconds at which.
    seen: dict[int, float] = field(default_factory=dict)

    def read(self, opened: Any) -> list[Row]:
        events = self._past(opened) if self.floor is None else events_after(opened, self.task_ids, self.floor)
        new = [event for event in events if event["event_id"] not in self.seen]
        now = time.monotonic()
        self.seen |= {event["event_id"]: now for event in new}
        # Ids are assigned before a transaction commits: an event with an id below those just seen may still appear.
        patience = OVERLAP if len(events) < task_events.EVENTS else 0.0
        self.floor = max((number for number, at in self.seen.items() if at <= now - patience), default=self.floor or 0)
        self.seen = {number: at for number, at in self.seen.items() if number > self.floor}
        return new

    def _past(self, opened: Any) -> list[Row]:
        past = [event for task_id in self.task_ids for event in newest_events(opened, task_id)]
        return sorted(past, key=lambda event: event["event_id"])
