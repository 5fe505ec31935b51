"""Bursts on GitHub's runners: granted by the budget, started by a dispatch, ended by a cancel."""

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

from sqlalchemy import select

from howl.bursts import budget, records
from howl.bursts.budget import Run
from howl.bursts.github_api import GitHub
from howl.bursts.records import ON_GITHUB
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections import postgres
from howl.errors import BurstRefused, GitHubUnsure, HowlError
from howl.models import Burst

#: Attempts at a dispatch whose run does not appear. A second run of the same burst would be told to do nothing.
DISPATCHES = 2
#: Seconds for a run to appear in GitHub's list, and between two polls of it.
FIND_TIMEOUT, FIND_POLL = 20.0, 2.0
#: Most runs that GitHub is asked about in one round: it answers some thousand requests an hour.
AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class Started:
    """A burst that GitHub has accepted, with its run's id and page."""

    burst_id: str
    run_id: str
    url: str


def start(request: BurstRequest, settings: Settings) -> Started:
    """Ask the budget, start the workflow, and record its run; workers register a minute or so later.

    Raises BurstRefused, GitHubFailed, NotConfigured or DatabaseUnavailable; the burst plans no minutes then, and a run
    of it that appears all the same does nothing. Raises BurstBegun, and changes nothing, if a burst has that id.
    """
    with GitHub(settings) as github:
        with postgres.session(settings.database()) as session:
            leave = budget.ask(session, settings, request)
        if leave.refused:
            raise BurstRefused(leave.refused)
        try:
            run_id, url = _dispatch(github, request, settings)
        except BaseException as error:
            _give_up(request, settings, error)
            raise
        with postgres.session(settings.database()) as session:
            budget.became(session, request.burst_id, Run(repository=github.repository, run_id=run_id), url)
    return Started(burst_id=request.burst_id, run_id=run_id, url=url)


def cancel(row: Burst, settings: Settings) -> None:
    """Cancel the run: workers put back what they run and leave in seconds; raises GitHubFailed or NotConfigured."""
    with GitHub(settings) as github:
        run_id = row.run.get("run_id") or _look(github, row.burst_id)[0]
        if run_id:
            github.cancel(run_id)


def conclude(settings: Settings) -> None:
    """Record how the last day's runs ended; raises GitHubFailed, DatabaseUnavailable or NotConfigured."""
    with postgres.session(settings.database()) as session:
        rows = session.scalars(select(Burst).where(Burst.origin == ON_GITHUB, Burst.started_at > _yesterday())).all()
    granted = [row for row in rows if not row.request.keys() & {"refused", "failed"}]
    wanted = [row for row in granted if "run_id" in row.run and "conclusion" not in row.run]
    random.shuffle(wanted)  # those not asked about now are asked about in a later round
    with GitHub(settings) as github:
        for row in wanted[:AT_ONCE]:
            if row.run["repository"] == github.repository:
                _conclude(github, row, settings)


def _conclude(github: GitHub, row: Burst, settings: Settings) -> None:
    run = github.run(row.run["run_id"], row.run["attempt"])
    if run is None:
        _disown(github, row, settings)
    elif run.conclusion:
        with postgres.session(settings.database()) as session:
            records.conclude(session, row.burst_id, run.conclusion)


def _disown(github: GitHub, row: Burst, settings: Settings) -> None:
    """End a burst whose run does not exist, although somebody has asked for its admission."""
    github.runs()  # raises if GitHub does not show us the workflow at all
    with postgres.session(settings.database()) as session:
        budget.disown(session, row.burst_id)


def _yesterday() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)


def inputs(request: BurstRequest) -> dict[str, str]:
    """Return the inputs of burst.yml; `burst_id` is part of its run-name, by which the run is found."""
    told = {
        "burst_id": request.burst_id,
        "runtime_minutes": str(ceil(request.runtime / 60)),
        "num_workers": str(request.workers),
        "tags": ",".join(request.tags),
        "queues": ",".join(request.queues),
        "concurrency": str(request.concurrency or ""),
    }
    return {name: value for name, value in told.items() if value}


def _dispatch(github: GitHub, request: BurstRequest, settings: Settings) -> tuple[str, str]:
    """Start a run and return its id and page; look for a run that may have started before dispatching again."""
    for _ in range(DISPATCHES):
        try:
            answer = github.dispatch(inputs(request))
        except GitHubUnsure:
            answer = None
        if found := answer or _find(github, request, settings):
            return found
    raise GitHubUnsure(
        f"GitHub did not say whether it started burst {request.burst_id}, and no such run shows: try again. "
        "It is given up; should a run of it appear, it will do nothing."
    )


def _find(github: GitHub, request: BurstRequest, settings: Settings) -> tuple[str, str] | None:
    """Wait for the run that bears the burst's id, or has asked for admission under it."""
    deadline = time.monotonic() + FIND_TIMEOUT
    while True:
        run_id, url = _look(github, request.burst_id)
        run_id = run_id or _asked(request, settings)
        if run_id:
            return run_id, url
        if time.monotonic() > deadline:
            return None
        time.sleep(FIND_POLL)


def _look(github: GitHub, burst_id: str) -> tuple[str, str]:
    return next(((run.run_id, run.url) for run in github.runs() if burst_id in run.title), ("", ""))


def _asked(request: BurstRequest, settings: Settings) -> str:
    with postgres.session(settings.database()) as session:
        return str(session.get_one(Burst, request.burst_id).run.get("run_id", ""))


def _give_up(request: BurstRequest, settings: Settings, error: BaseException) -> None:
    why = error.message if isinstance(error, HowlError) else type(error).__name__
    with postgres.session(settings.database()) as session:
        budget.give_up(session, request.burst_id, why)
