"""The fate of workers that were lost while they ran a task: "run 123, attempt 1, worker 2: cancelled"."""

import re
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.models import Burst, TaskEvent, Worker
from howl.outcomes import FINAL_STATUSES

#: Kinds of events that end a task's run on its worker.
OVER = (*FINAL_STATUSES, "retrying", "ended")
#: The number at the end of a worker's id, used where its run does not give an index.
NUMBER = re.compile(r"-(\d+)$")
#: Most events of a task that are read.
LOOKED_AT = 1000


def lost_with(session: Session, task_id: str) -> list[str]:
    """Return a sentence for each worker that is gone and began but did not end the task, in the order they began it."""
    order = select(TaskEvent.worker_id, TaskEvent.kind).where(TaskEvent.task_id == task_id)
    events = session.execute(order.order_by(TaskEvent.event_id).limit(LOOKED_AT)).all()
    begun = _begun_and_not_ended([(worker_id, kind) for worker_id, kind in events if worker_id])
    workers = {row.worker_id: row for row in session.scalars(select(Worker).where(Worker.worker_id.in_(begun)))}
    gone = [workers[name] for name in begun if name in workers and workers[name].status in ("offline", "lost")]
    return [_sentence(session, worker) for worker in gone]


def _begun_and_not_ended(events: list[tuple[str, str]]) -> list[str]:
    open_: dict[str, None] = {}
    for worker_id, kind in events:
        if kind == "started":
            open_[worker_id] = None
        elif kind in OVER:
            open_.pop(worker_id, None)
    return list(open_)


def _sentence(session: Session, worker: Worker) -> str:
    burst = _burst(session, worker.run)
    conclusion = burst.run.get("conclusion") if burst else None
    how = conclusion if conclusion not in (None, "success") else _status(worker)
    return f"{_place(worker)}: {how}"


def _status(worker: Worker) -> str:
    return "lost" if worker.status == "lost" else "left"


def _place(worker: Worker) -> str:
    run, number = worker.run, NUMBER.search(worker.worker_id)
    index = run.get("index") or (number[1] if number else worker.worker_id)
    if "run_id" in run:
        return f"run {run['run_id']}, attempt {run.get('attempt', 1)}, worker {index}"
    if "burst_id" in run:
        return f"burst {run['burst_id'][:12]}, worker {index}"
    return f"worker {worker.worker_id}"


def _burst(session: Session, run: dict[str, Any]) -> Burst | None:
    """Find the burst of a worker by its run and attempt, or by burst id for a burst on one machine."""
    if "run_id" in run:
        told = {name: run[name] for name in ("repository", "run_id", "attempt") if name in run}
        index = Burst.run["index"].astext  # null if a job was run again without its plan
        ours = Burst.run.contains(told) & (index.is_(None) | (index == run.get("index")))
        return session.scalars(select(Burst).where(ours).limit(1)).first()
    return session.get(Burst, run["burst_id"]) if "burst_id" in run else None
