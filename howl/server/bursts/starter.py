"""The starter: starts bursts on GitHub by schedule and when too much waits; each one asks the budget.

Several servers, or a restarted one, may ask for the same burst: its id is derived from its purpose, so that its row,
of which there can be only one, decides who starts it.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from howl.bursts import github, records
from howl.bursts.github_api import is_configured
from howl.bursts.records import ON_GITHUB
from howl.bursts.request import BurstRequest
from howl.bursts.schedule import Demand, Schedule
from howl.celery import worker_queue
from howl.config import Settings
from howl.connections.postgres import session
from howl.errors import BurstBegun, DatabaseUnavailable, HowlError
from howl.models import Burst
from howl.queries.overview import longest_waits
from howl.queries.queues import waiting

logger = logging.getLogger(__name__)

#: Seconds between two checks of the schedule and the queues.
ROUND = 5.0
#: How late a scheduled burst may start after the server was down; a later one is skipped.
LATE = timedelta(minutes=5)
#: Values of bursts.requested_by for bursts that the server starts.
BY_SCHEDULE, BY_DEMAND = "HOWL_BURST_SCHEDULE", "HOWL_BURST_WHEN"


def starter_of(settings: Settings) -> "Starter | None":
    """Return the starter if it has anything to do and can do it; raises SettingsError."""
    starter = Starter(settings)
    if not (starter.schedule or starter.demand):
        return None
    if not is_configured(settings):
        logger.warning(
            "HOWL_BURST_SCHEDULE and HOWL_BURST_WHEN start nothing until HOWL_GITHUB_REPOSITORY and HOWL_GITHUB_TOKEN "
            "are set."
        )
        return None
    return starter


class Starter:
    """Checks the schedule and the queues in rounds; `now` returns the time, with its zone."""

    def __init__(self, settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.settings = settings
        self.now = now
        self.schedule = Schedule.parse(settings.burst_schedule) if settings.burst_schedule else None
        self.demand = Demand.parse(settings.burst_when) if settings.burst_when else None
        self.cooldown = timedelta(seconds=settings.burst_cooldown)
        #: Minutes of the schedule up to this time are handled.
        self.done = now() - LATE
        #: Time from which demand may ask again: a refused burst has no row that would show it.
        self.patient_until = self.done

    async def run(self) -> None:
        """Run until cancelled. Raises DatabaseUnavailable or QueueUnavailable; running it again forgets nothing."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(ROUND * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret

    def look(self) -> None:
        """Start bursts that are due."""
        if self.schedule:
            self._by_schedule(self.schedule, self.now())
        if self.demand:
            self._by_demand(self.demand, self.now())

    def _by_schedule(self, schedule: Schedule, now: datetime) -> None:
        """Start one burst, however many minutes of the schedule have passed since the last check."""
        minute = schedule.newest(max(self.done, now - LATE), now)
        if minute:
            self._start(BY_SCHEDULE, f"{minute:%Y-%m-%dT%H:%M}")
        self.done = now

    def _by_demand(self, demand: Demand, now: datetime) -> None:
        if now < self.patient_until:
            return
        last, under_way = self._latest()
        if under_way >= self.settings.burst_most or (last and now < last.started_at + self.cooldown):
            return
        if demand.is_met(self._measure(demand)):
            self._start(BY_DEMAND, f"after {last.burst_id if last else 'none'}")
            self.patient_until = now + self.cooldown

    def _latest(self) -> tuple[Burst | None, int]:
        """Return the last burst started by demand, and the number of running bursts, whoever started them."""
        ours = select(Burst).where(Burst.requested_by == BY_DEMAND).order_by(Burst.started_at.desc()).limit(1)
        going = select(func.count()).where(Burst.origin == ON_GITHUB, Burst.ended_at.is_(None))
        with session(self.settings.database()) as opened:
            return opened.scalar(ours), opened.scalar(going) or 0

    def _measure(self, demand: Demand) -> float:
        if demand.measure == "waiting":
            return sum(_for_anybody(waiting(self.settings)))
        with session(self.settings.database()) as opened:
            return max(_for_anybody(longest_waits(opened)), default=0.0)

    def _start(self, why: str, which: str) -> None:
        """Ask the budget and GitHub; a refusal is logged once, and the same burst is not asked for again."""
        request = BurstRequest(
            burst_id=self._id(why, which),
            workers=self.settings.burst_workers,
            runtime=self.settings.burst_runtime,
            requested_by=why,
        )
        try:
            started = github.start(request, self.settings)
        except BurstBegun:
            logger.debug("%s: burst %s was started by another server, or before.", why, request.burst_id)
        except DatabaseUnavailable:
            raise
        except HowlError as error:
            logger.warning("%s (%s) started no burst: %s", why, which, error.message)
        else:
            logger.info("%s (%s) started burst %s, run %s.", why, which, started.burst_id, started.run_id)

    def _id(self, *words: str) -> str:
        """Return an id that is the same for every server of this installation only."""
        with session(self.settings.database()) as opened:
            place = (records.installation(opened), str(self.settings.github_repository), self.settings.subject_prefix)
        return uuid.uuid5(uuid.NAMESPACE_URL, "\n".join((*place, *words))).hex


def _for_anybody(found: Mapping[str, float]) -> list[float]:
    """Keep the queues that a burst's worker can take from: tasks assigned to one worker wait for that one."""
    return [number for queue, number in found.items() if not queue.startswith(str(worker_queue("").name))]
