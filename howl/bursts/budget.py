"""The budget: decides whether a burst on GitHub may start, one request at a time.

Bursts of this calendar month (UTC) that ended count the minutes their workers used; bursts that have not ended count
the minutes planned. Each job's minutes are rounded up, as GitHub does. Only GitHub knows the minutes before a job's
worker registers, and those of the planning job.
"""

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from howl.bursts.records import ON_GITHUB, crew
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.errors import BurstBegun
from howl.models import Burst, Worker

#: GitHub's limits: jobs of one matrix, and minutes of a job less some for its set-up.
MOST_WORKERS, LONGEST_MINUTES = 256, 350
#: How long after its runtime a burst may still have workers that never registered: GitHub lets jobs wait.
LATEST = timedelta(minutes=60)
#: How long a lost worker must have been silent to count as gone for good.
SILENCE = timedelta(minutes=5)
#: Most answers to runs that are recorded within a day for one credential.
A_DAY = 200


@dataclass(frozen=True, kw_only=True)
class Run:
    """A workflow's run; a re-run has the same id and the next attempt."""

    repository: str
    run_id: str
    attempt: str = "1"
    #: The number of the one job that asks for itself, when GitHub re-runs it alone; None: all jobs of the plan.
    index: str | None = None
    #: The worker's credential that reported the run; None if the server or GitHub did.
    credential: str | None = None

    @property
    def known(self) -> dict[str, Any]:
        """Fields of the run to record: those that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Leave:
    """A decision on a burst: `refused` is None, or the reason in a sentence."""

    burst_id: str
    workers: int
    minutes: float
    run: Run | None = None
    refused: str | None = None

    def matrix(self, user: str) -> list[dict[str, Any]]:
        """Return the run's jobs, if any: `index` from 1, and the worker's `name`, which begins with `user`."""
        if self.refused is not None or self.run is None:
            return []
        stem = f"{user}-{self.run.run_id}-{self.run.attempt}"
        jobs = [int(self.run.index)] if self.run.index else range(1, self.workers + 1)
        return [{"index": index, "name": f"{stem}-{index}"} for index in jobs]


# --- deciding ----------------------------------------------------------------------------------------------------


def ask(session: Session, settings: Settings, request: BurstRequest, run: Run | None = None) -> Leave:
    """Decide, record what was granted, and commit; a run that asks again gets the same answer.

    `run` is the run that asks; None if it is yet to be started. A burst recorded before under the request's `burst_id`
    becomes this run, with what was granted then, unless these `settings`, the server's, are stricter.
    Raises BurstBegun if such a burst exists and `run` is None.
    """
    _one_at_a_time(session)
    _settle(session)
    leave = _answered(session, run) or _begun(session, settings, request, run) or _new(session, settings, request, run)
    session.commit()
    return leave


def _one_at_a_time(session: Session) -> None:
    """Lock until the transaction ends: two requests at once must not both be granted the last minutes.

    The lock's mode conflicts with itself (and with vacuuming), not with reads or writes. Unlike an advisory lock, it
    cannot be taken by a role that may only read.
    """
    session.execute(text("LOCK TABLE bursts IN SHARE UPDATE EXCLUSIVE MODE"))


def _answered(session: Session, run: Run | None) -> Leave | None:
    """Return the earlier answer to this attempt of the run; for a single job, also the answer to its plan."""
    if run is None:
        return None
    run_itself = replace(run, credential=None)
    same = Burst.run.contains(replace(run_itself, index=None).known)
    index = Burst.run["index"].astext
    if run.index is None:
        same &= index.is_(None)
    else:
        same &= (index == run.index) | (index.is_(None) & (Burst.num_workers >= int(run.index)))
    # An answer to another credential is not an answer to this one.
    whose = Burst.run["credential"].astext
    row = session.scalar(select(Burst).where(same, whose.is_(None) | (whose == run.credential)).limit(1))
    return replace(_leave(row), run=run_itself) if row else None


def _begun(session: Session, settings: Settings, request: BurstRequest, run: Run | None) -> Leave | None:
    """Return the decision on a burst granted before its run was started; None if there is none, or for a re-run."""
    row = session.get(Burst, request.burst_id, populate_existing=True, with_for_update=True)
    if row is None:
        return None
    if run is None:
        raise BurstBegun(f"Burst {row.burst_id} has been asked for before: `howl burst list` shows what became of it.")
    if row.run.get("run_id") == run.run_id:
        return None  # another attempt, which costs as much again
    if "run_id" in row.run:
        return _no(
            request, run, f"Burst {row.burst_id} is run {row.run['run_id']} already: this second one does nothing."
        )
    if row.ended_at is not None:
        return _no(request, run, f"Burst {row.burst_id} was given up before this run began: start another.")
    row.run = row.run | run.known
    granted = BurstRequest(workers=row.num_workers, runtime=row.runtime_minutes * 60)
    if refused := _refusal(session, settings, granted, but=row.burst_id):
        _refuse(session, row, refused)
    return _leave(row)


def _new(session: Session, settings: Settings, request: BurstRequest, run: Run | None) -> Leave:
    if run is not None:
        request = replace(request, burst_id=uuid.uuid4().hex)  # the id that a run gives may be another burst's
    if run is not None and (often := _too_often(session, run.credential)):
        return _no(request, run, often)
    refused = _nonsense(request) or _refusal(session, settings, request)
    if run is not None and run.credential is not None:
        refused = refused or _too_much(session, settings, request, run.credential)
    if refused and run is None:
        return _no(request, run, refused)
    row = _row(request, run)
    session.add(row)
    if refused:
        _refuse(session, row, refused)
    session.flush()
    return _leave(row)


def _row(request: BurstRequest, run: Run | None) -> Burst:
    return Burst(
        burst_id=request.burst_id,
        origin=ON_GITHUB,
        requested_by=request.requested_by,
        num_workers=request.workers,
        runtime_minutes=request.runtime / 60,
        minutes_planned=planned(request),
        request={"tags": request.tags, "queues": request.queues, "concurrency": request.concurrency},
        run=run.known if run else {},
    )


def _leave(row: Burst) -> Leave:
    known = {name: row.run[name] for name in ("repository", "run_id", "attempt", "index") if name in row.run}
    return Leave(
        burst_id=row.burst_id,
        workers=row.num_workers,
        minutes=row.runtime_minutes,
        run=Run(**known) if "run_id" in known else None,
        refused=row.request.get("refused"),
    )


def _no(request: BurstRequest, run: Run | None, why: str) -> Leave:
    return Leave(burst_id=request.burst_id, workers=request.workers, minutes=request.runtime / 60, run=run, refused=why)


def _refuse(session: Session, row: Burst, why: str) -> None:
    row.request = row.request | {"refused": why}
    row.minutes_planned, row.minutes_used, row.ended_at = 0, 0, _now(session)


# --- arithmetic --------------------------------------------------------------------------------------------------


def planned(request: BurstRequest) -> int:
    """Return the minutes that GitHub will count: each job's are rounded up."""
    return request.workers * ceil(request.runtime / 60)


def _nonsense(request: BurstRequest) -> str | None:
    if not 1 <= request.workers <= MOST_WORKERS:
        return f"A burst on GitHub has 1 to {MOST_WORKERS} workers, not {request.workers}."
    if not 0 < request.runtime <= LONGEST_MINUTES * 60:
        return f"A job on GitHub ends after 6 hours, its set-up included: ask for {LONGEST_MINUTES} minutes at most."
    return None


def _refusal(session: Session, settings: Settings, request: BurstRequest, but: str = "") -> str | None:
    """Return the arithmetic if it forbids the burst; the recorded burst `but` does not count against itself."""
    found = sums(session, settings, but)
    if planned(request) > found["left"]:
        return (
            f"{request.workers} workers x {ceil(request.runtime / 60)} min = {planned(request):,} minutes, and "
            f"{max(0, found['left']):,g} of this month's {found['budget']:,} are left ({found['used']:,g} used, "
            f"{found['planned']:,g} planned): ask for fewer or shorter, or raise HOWL_BUDGET_MINUTES."
        )
    if found["workers"] + request.workers > found["concurrency"]:
        return (
            f"{request.workers} workers and the {found['workers']} of bursts under way are "
            f"{found['workers'] + request.workers}, and {found['concurrency']} may be at once: ask for fewer, wait, or "
            "raise HOWL_BURST_CONCURRENCY."
        )
    return None


def _too_often(session: Session, credential: str | None) -> str | None:
    """Return a refusal if the credential has asked `A_DAY` times within a day: each answer is a row."""
    asked = Burst.run["credential"].astext == credential
    number = session.scalar(select(func.count()).where(asked, Burst.started_at > _now(session) - timedelta(days=1)))
    if credential is None or (number or 0) < A_DAY:
        return None
    return f"Runs have asked for leave {A_DAY} times within a day with the credential {credential}: ask tomorrow."


def _too_much(session: Session, settings: Settings, request: BurstRequest, credential: str) -> str | None:
    """Return a refusal if a credential exceeds its share: its holder can ask for runs that do not exist."""
    found = sums(session, settings, whose=credential)
    minutes, workers = (int(settings.budget_share * found[name]) for name in ("budget", "concurrency"))
    if found["used"] + found["planned"] + planned(request) <= minutes and found["workers"] + request.workers <= workers:
        return None
    taken = found["used"] + found["planned"]
    return (
        f"Runs that HOWL did not start itself may take {minutes:,} minutes of a month and {workers} workers at once "
        f"with the credential {credential}, of which {taken:,g} minutes and {found['workers']} "
        "workers are taken: ask for fewer or shorter, start bursts with `howl burst start`, or raise HOWL_BUDGET_SHARE."
    )


def look(session: Session, settings: Settings) -> dict[str, Any]:
    """Settle; return the month's minutes (`budget`, `used`, `planned`, `left`) and `workers` (of `concurrency`)."""
    _one_at_a_time(session)
    _settle(session)
    return sums(session, settings)


def sums(session: Session, settings: Settings, but: str = "", whose: str | None = None) -> dict[str, Any]:
    """Return the same without settling, less the burst `but`, or only for bursts that the credential `whose` asked for.

    Changes nothing: bursts that have just ended may still count in full. Bursts that HOWL started are not `whose`.
    """
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    ours, ended = Burst.origin == ON_GITHUB, Burst.ended_at.is_not(None)
    if whose is not None:
        ours &= (Burst.run["credential"].astext == whose) & ~Burst.run.has_key("url")
    used = session.scalars(select(Burst.minutes_used).where(ours, ended, Burst.started_at >= month)).all()
    others = select(Burst.minutes_planned, Burst.num_workers).where(ours, ~ended, Burst.burst_id != but)
    going = session.execute(others).all()
    spent, planned = sum(minutes or 0 for minutes in used), sum(minutes for minutes, _ in going)
    return {
        "month": f"{month:%Y-%m}",
        "budget": settings.budget_minutes,
        "used": spent,
        "planned": planned,
        "left": settings.budget_minutes - spent - planned,
        "workers": sum(workers for _, workers in going),
        "concurrency": settings.burst_concurrency,
    }


# --- settling ----------------------------------------------------------------------------------------------------


def settle(session: Session) -> None:
    """Record the end, and the minutes used, of bursts whose workers are gone."""
    _one_at_a_time(session)
    _settle(session)


def became(session: Session, burst_id: str, run: Run, url: str) -> None:
    """Record which run a burst has become, as GitHub reports it, whatever a run has said of itself."""
    _one_at_a_time(session)
    row = session.get_one(Burst, burst_id, populate_existing=True, with_for_update=True)
    said = row.run if row.run.get("run_id") == run.run_id else {}
    row.run = {name: value for name, value in said.items() if name != "credential"} | {
        "repository": run.repository, "run_id": run.run_id, "attempt": said.get("attempt", run.attempt), "url": url,
    }  # fmt: skip


def give_up(session: Session, burst_id: str, why: str) -> None:
    """End a burst whose run was never started: it takes no minutes."""
    _one_at_a_time(session)
    row = session.get_one(Burst, burst_id, populate_existing=True, with_for_update=True)
    if row.ended_at is None and "run_id" not in row.run:
        row.request = row.request | {"failed": why}
        row.ended_at, row.minutes_used = _now(session), 0


def disown(session: Session, burst_id: str) -> None:
    """End a burst whose run GitHub does not know: it takes no minutes."""
    _one_at_a_time(session)
    row = session.get_one(Burst, burst_id, populate_existing=True, with_for_update=True)
    if row.ended_at is None:
        row.request = row.request | {"failed": "GitHub knows no such run."}
        row.ended_at, row.minutes_used = _now(session), 0


def _settle(session: Session) -> None:
    now = _now(session)
    for row in session.scalars(select(Burst).where(Burst.origin == ON_GITHUB, Burst.ended_at.is_(None))):
        workers = crew(session, row)
        if _is_over(row, workers, now):
            row.minutes_used = _used(row, workers)
            row.ended_at = max((_last_heard(worker) for worker in workers), default=now)
    session.flush()


def _is_over(row: Burst, workers: list[Worker], now: datetime) -> bool:
    if not all(_is_gone(worker, now) for worker in workers):
        return False
    all_came = len(workers) >= row.num_workers
    late = now > row.started_at + timedelta(minutes=row.runtime_minutes) + LATEST
    return all_came or late or "conclusion" in row.run


def _is_gone(worker: Worker, now: datetime) -> bool:
    return worker.status == "offline" or (worker.status == "lost" and _last_heard(worker) < now - SILENCE)


def _used(row: Burst, workers: Iterable[Worker]) -> float:
    """Sum up the minutes used; a job of a run counts one even if its worker never registered."""
    minutes = [max(1, ceil((_last_heard(worker) - worker.registered_at).total_seconds() / 60)) for worker in workers]
    missing = max(0, row.num_workers - len(minutes)) if "run_id" in row.run else 0
    return sum(minutes) + missing


def _last_heard(worker: Worker) -> datetime:
    return worker.offline_at or worker.last_heartbeat_at or worker.registered_at


def _now(session: Session) -> datetime:
    now: datetime = session.execute(select(func.now())).scalar_one()
    return now
