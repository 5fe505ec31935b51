"""Watching a burst until its workers have registered, wherever they run."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from howl.bursts import records
from howl.bursts.github_api import GitHub, WorkflowRun, is_configured
from howl.bursts.records import ON_GITHUB
from howl.config import Settings
from howl.connections import postgres
from howl.errors import BurstFailed, BurstRefused, GitHubFailed
from howl.models import Burst

logger = logging.getLogger(__name__)

#: Seconds between two polls of the workers table, and of GitHub.
POLL, GITHUB_POLL = 1.0, 10.0
#: Seconds for workers to register: GitHub's runners are not always free.
TIMEOUT = 900.0


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Numbers of a burst's workers, and of those `registered`; `run_status` is GitHub's, such as queued."""

    burst_id: str
    workers: int
    registered: int
    run_status: str | None = None


def watch(burst_id: str, settings: Settings, timeout: float = TIMEOUT) -> Iterator[Arrivals]:
    """Yield a burst's arrivals once a second until all its workers have registered.

    Raises UnknownBurst, DatabaseUnavailable or BurstRefused; or BurstFailed when the burst ended before, or `timeout`
    seconds have passed: the burst then goes on.
    """
    deadline = time.monotonic() + timeout
    run, next_question = None, 0.0
    while True:
        row, registered = _look(burst_id, settings)
        if time.monotonic() >= next_question:
            run, next_question = _ask_github(row, settings), time.monotonic() + GITHUB_POLL
        yield Arrivals(
            burst_id=row.burst_id,
            workers=row.num_workers,
            registered=registered,
            run_status=run.status if run else None,
        )
        if registered >= row.num_workers:
            return
        _require_hope(row, run, registered)
        if time.monotonic() > deadline:
            raise BurstFailed(
                f"{registered} of {row.num_workers} workers registered within {timeout:g} s; others may still come: "
                f"`howl burst watch {row.burst_id[:12]}`."
            )
        time.sleep(POLL)


def _look(burst_id: str, settings: Settings) -> tuple[Burst, int]:
    with postgres.session(settings.database()) as session:
        row = records.find(session, burst_id)
        return row, len(records.crew(session, row))


def _ask_github(row: Burst, settings: Settings) -> WorkflowRun | None:
    """Return the burst's run, if any: a failure in its set-up is reported nowhere else."""
    if row.origin != ON_GITHUB or "run_id" not in row.run or not is_configured(settings):
        return None
    try:
        with GitHub(settings) as github:
            ours = github.repository == row.run["repository"]
            return github.run(row.run["run_id"], row.run["attempt"]) if ours else None
    except GitHubFailed as error:
        logger.warning("%s", error.message)
        return None


def _require_hope(row: Burst, run: WorkflowRun | None, registered: int) -> None:
    if refused := row.request.get("refused"):
        raise BurstRefused(str(refused))
    if failed := row.request.get("failed"):
        raise BurstFailed(str(failed))
    came = f"{registered} of {row.num_workers} workers registered"
    if run is not None and run.conclusion:
        raise BurstFailed(f"Run {run.run_id} ended ({run.conclusion}) when {came}: {run.url} shows why.")
    if row.ended_at is not None:
        raise BurstFailed(f"The burst ended when {came}.")
