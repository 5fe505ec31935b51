"""Events of running tasks: recorded for a while, and the latest progress live in Redis.

Only the recorder sets a task's state, from outcomes; nothing here changes it, so nothing is counted twice.
"""

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from howl.broker.scripts import PROGRESS
from howl.config import Settings
from howl.server.bridge.events import Happening
from howl.server.recorder.quota import Budget
from howl.server.storable import as_json

#: Kinds of rows, by the types of events that are recorded, and (DATA) the fields each row holds.
KINDS = {"task-received": "received", "task-progress": "progress", "task-log": "log"}
#: Types used for live display only, two per task: the recorder knows the state of tasks better.
SEEN_LIVE_ALONE = frozenset(("task-started", "task-succeeded"))
DATA = {
    "task-received": ("name", "retries", "eta"),
    "task-progress": ("done", "total", "note"),
    "task-log": ("lines", "dropped"),
}
#: Seconds for which a task's latest progress is kept.
LIVE = 3600
#: Maximum tasks whose progress one script call sets.
AT_ONCE = 1000
#: Days for which events are kept, and maximum events that one statement deletes.
DAYS, PORTION = 7, 20_000

APPEND = """
INSERT INTO task_events (task_id, worker_id, kind, at, data, source)
SELECT task_id, worker_id, kind, to_timestamp(at), data, source
FROM json_to_recordset(CAST(:rows AS json))
AS given(task_id text, worker_id text, kind text, at double precision, data jsonb, source text)
ON CONFLICT (source) DO NOTHING
"""

FORGET = """
DELETE FROM task_events WHERE event_id IN (
    SELECT event_id FROM task_events WHERE at < now() - make_interval(days => :days)
    ORDER BY at LIMIT :portion FOR UPDATE SKIP LOCKED
)
"""


def record(opened: Session, happenings: list[Happening], budget: Budget) -> None:
    """Append the events that are recorded, except of credentials above HOWL_RECORD_LIMIT; repeats add no rows."""
    of_each = defaultdict(list)
    for happening in happenings:
        if happening.event["type"] in KINDS:
            of_each[happening.credential].append(_row(happening))
    # In one global order, so that no two transactions deadlock.
    for credential, rows in sorted(of_each.items()):
        if budget.allows(opened, credential, [len(str(row["data"])) for row in rows]):
            opened.execute(text(APPEND), {"rows": as_json(rows)})


def forget(opened: Session) -> bool:
    """Delete a portion of the events older than DAYS; return whether there may be more."""
    answer: Any = opened.execute(text(FORGET), {"days": DAYS, "portion": PORTION})
    return bool(answer.rowcount == PORTION)


def show(redis: Any, settings: Settings, happenings: list[Happening]) -> None:
    """Store the latest progress of each task, unless a later one is stored; raises redis's errors."""
    latest = {each.event["uuid"]: each for each in sorted(happenings, key=_place) if "done" in each.event}
    documents = [(settings.key(f"progress:{task_id}"), _document(each)) for task_id, each in latest.items()]
    for first in range(0, len(documents), AT_ONCE):
        keys, values = zip(*documents[first : first + AT_ONCE], strict=True)
        PROGRESS.run(redis, list(keys), [LIVE, *values])


def _row(happening: Happening) -> dict[str, Any]:
    event = happening.event
    data = {name: event[name] for name in DATA[event["type"]] if event.get(name) is not None}
    return {
        "task_id": event["uuid"],
        "worker_id": happening.worker_id,
        "kind": KINDS[event["type"]],
        "at": happening.at,
        "data": data,
        "source": f"{happening.letter.source}.{happening.place}",
    }


def _place(happening: Happening) -> tuple[int, int, int]:
    return happening.letter.nanoseconds, happening.letter.sequence, happening.place


def _document(happening: Happening) -> str:
    """Encode the progress; its order comes first, with fixed width, for the script to compare as text.

    Lua's numbers have too few digits. Nanoseconds come first in the order, because a recreated stream counts from one.
    """
    event = happening.event
    at = datetime.fromtimestamp(happening.at, UTC).isoformat()
    progress = {"done": event["done"], "total": event.get("total"), "note": event.get("note")}
    order = "{:020d}.{:020d}.{:06d}".format(*_place(happening))
    return json.dumps({"order": order} | progress | {"at": at, "worker_id": happening.worker_id})
