"""Maintenance of tasks that Redis lost, whose worker is gone, or that have expired."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from celery.exceptions import TaskRevokedError
from sqlalchemy import func, or_, select, update

from howl.broker import scripts, set_aside
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.postgres import session
from howl.connections.redis import redis_client
from howl.errors import DatabaseUnavailable, InvalidRequest, TaskSetAside, WorkerGone
from howl.models import Task, Worker
from howl.outcomes import FINAL_RANK, failure
from howl.server.bridge import task_events
from howl.server.chords import chords
from howl.server.maintenance import lease_reaper, unknown_tasks
from howl.submission import push, take_off_queue

logger = logging.getLogger(__name__)

#: Approximate seconds between two rounds.
ROUND = 5.0
#: Maximum tasks that a duty handles in one round; the rest waits for the next round.
AT_ONCE = 1000
#: Seconds that a submission may take from its row to its push, and a worker to return under its name.
PATIENCE = 10.0
#: Seconds between two deletions of old events.
FORGETTING = 60.0
#: Kind under which tasks that are set aside are reported.
KIND = "tasks"


class Keeper:
    """Runs maintenance duties in rounds; each duty may be repeated at any time without harm."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.app = app
        self.redis: Any = redis_client(settings)
        self.names = lease_reaper.SharedNames()
        #: Monotonic second of the next deletion of old events.
        self.next_forgetting = 0.0
        #: Whether Redis was away since leases were last granted: the only reason to grant them, unlike a duty's errors.
        self.redis_was_away = True

    async def run(self) -> None:
        """Run until cancelled. Raises DatabaseUnavailable, QueueUnavailable or Redis's errors."""
        while True:
            if self.redis_was_away:
                await asyncio.to_thread(lease_reaper.grant_one_more_lease, self.redis, self.settings)
                self.names = lease_reaper.SharedNames()  # it must not mistake a grant for a renewal
                self.redis_was_away = False
            await self._round()
            await asyncio.sleep(self._pause())

    async def _round(self) -> None:
        """Run every duty, even if an earlier one fails, then raise the first error.

        Once Redis is away, raise at once: every further duty would wait for it.
        """
        first: Exception | None = None
        for duty in self._duties():
            try:
                await asyncio.to_thread(duty)
            except Exception as error:
                if lease_reaper.could_not_renew(error):
                    self.redis_was_away = True
                    raise
                first = first or error
        if first is not None:
            raise first

    def _duties(self) -> tuple[Callable[[], None], ...]:
        messages = (self.load_scripts, self.put_back, self.offer_unknown, self.push_what_is_missing)
        tasks = (self.fail_what_nobody_can_start, self.expire, self.submit_bodies)
        return (*messages, *tasks, self.expire_chords, self.forget_events)

    def _pause(self) -> float:
        """Return the seconds to the next round, short enough to notice an expired lease."""
        return min(ROUND, self.settings.lease / 3) * random.uniform(0.8, 1.2)  # noqa: S311  # jitter, no secret

    def push_what_is_missing(self) -> None:
        """Push submitted tasks that never reached Redis or that it has lost since."""
        now = datetime.now(UTC)
        never_pushed = (
            (Task.rank == 0) & Task.pushed_at.is_(None) & (Task.queued_at < now - timedelta(seconds=PATIENCE))
        )
        pushed_long_ago = Task.pushed_at < now - timedelta(seconds=self.settings.push_again_after)
        # A started task is lost as well when Redis loses its message. A row that reports a later attempt may have ended
        # before, and a worker's report is not enough to start the task again.
        for task in self._unmarked(self._open((Task.attempts <= 1) & or_(never_pushed, pushed_long_ago))):
            with self._trying(task, "FAILURE"):
                self._push_again(task)

    def _push_again(self, task: Task) -> None:
        if not self._still_open(task):
            return
        try:
            push(task, self.app)
        except InvalidRequest as error:  # a row written by an earlier version, or from a worker's report
            logger.error("Task %s cannot be pushed: %s", task.task_id, error.message)  # noqa: TRY400
            self._end(task, "FAILURE", error)
            return
        self._note_push(task)
        logger.warning("Task %s (%s) was not on its queue: pushed again.", task.task_id, task.name)

    @contextmanager
    def _trying(self, task: Task, state: str) -> Iterator[None]:
        """Keep an error with one task from holding up others; after a few rounds the task ends in `state`."""
        try:
            yield
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  # counted and reported
            why = set_aside.in_short(reason(error))
            if not set_aside.is_last_try(self.redis, self.settings, KIND, task.task_id):
                logger.warning("Task %s is tried again in a moment: %s.", task.task_id, why)
                return
            logger.error("Task %s is set aside: %s.", task.task_id, why)  # noqa: TRY400  # one line suffices
            set_aside.note(self.redis, self.settings, KIND, task.task_id, why)
            self.app.backend.append(failure(task.task_id, state, TaskSetAside(why)))

    def fail_what_nobody_can_start(self) -> None:
        """Fail tasks assigned to one worker that is gone and has not started them."""
        since = func.greatest(Worker.offline_at, Worker.last_heartbeat_at)
        gone = Worker.status.in_(("offline", "lost")) & (since < func.now() - timedelta(seconds=PATIENCE))
        waited_for = Worker.worker_id.in_(select(Task.target_worker_id).where(Task.rank == 0))
        with session(self.settings.database()) as opened:
            found = opened.execute(select(Worker.worker_id, Worker.status).where(gone, waited_for).limit(AT_ONCE)).all()
        # A lease is better evidence than a heartbeat, which may be lost on its way; an announced departure is trusted.
        silent = [worker_id for worker_id, status in found if status == "lost"]
        living = lease_reaper.living_workers(self.redis, self.settings, silent)
        workers = {worker_id for worker_id, _ in found}.difference(living)
        for task in self._queued(Task.target_worker_id.in_(workers)) if workers else ():
            with self._trying(task, "FAILURE"):
                self._end(task, "FAILURE", WorkerGone("worker gone"))

    def expire(self) -> None:
        """Revoke expired tasks that no worker has taken."""
        for task in self._queued(Task.expires_at < func.now() - timedelta(seconds=PATIENCE)):
            with self._trying(task, "REVOKED"):
                self._end(task, "REVOKED", TaskRevokedError("expired"))

    def load_scripts(self) -> None:
        """Load scripts: workers may run but not load them, and a restarted Redis has lost them."""
        scripts.load_all(self.redis)

    def put_back(self) -> None:
        """Put messages of dead owners, and parked messages nearly due, back on their queues."""
        lease_reaper.put_back_what_the_dead_held(self.redis, self.settings)
        self.names.look(self.redis, self.settings)
        lease_reaper.feed_what_is_due(self.redis, self.settings)

    def offer_unknown(self) -> None:
        """Put tasks unknown to the worker that took them back on their queue, for workers that know them."""
        unknown_tasks.put_back(self.redis, self.settings)

    def submit_bodies(self) -> None:
        """Submit bodies of finished chords that the recorder could not submit at once."""
        chords.wake_all(self.settings)
        chords.submit_due(self.settings, self.app)

    def expire_chords(self) -> None:
        """Expire chords that wait longer than HOWL_CHORD_RETENTION, and delete those settled for as long."""
        chords.expire(self.settings, self.app)

    def forget_events(self) -> None:
        """Delete task events older than a week; the tasks' rows and results stay."""
        if time.monotonic() < self.next_forgetting:
            return
        with session(self.settings.database()) as opened:
            more = task_events.forget(opened)
        if not more:
            self.next_forgetting = time.monotonic() + FORGETTING

    def _queued(self, condition: Any) -> Sequence[Task]:
        return self._open((Task.rank == 0) & condition)

    def _open(self, condition: Any) -> Sequence[Task]:
        oldest = select(Task).where(Task.rank < FINAL_RANK, condition).order_by(Task.queued_at).limit(AT_ONCE)
        with session(self.settings.database()) as opened:
            return opened.scalars(oldest).all()

    def _unmarked(self, tasks: Sequence[Task]) -> Iterable[Task]:
        if not tasks:
            return []
        marks = self.redis.hmget(self.settings.key("inflight"), [task.task_id for task in tasks])
        return [task for task, mark in zip(tasks, marks, strict=True) if mark is None]

    def _still_open(self, task: Task) -> bool:
        """Read the row again once the mark is missing: the recorder removes the marks of ended tasks."""
        with session(self.settings.database()) as opened:
            return opened.scalar(select(Task.rank < FINAL_RANK).where(Task.task_id == task.task_id)) is True

    def _note_push(self, task: Task) -> None:
        with session(self.settings.database()) as opened:
            opened.execute(update(Task).where(Task.task_id == task.task_id).values(pushed_at=func.now()))

    def _end(self, task: Task, state: str, error: Exception) -> None:
        take_off_queue(task, self.app)  # it must not start after its end is recorded
        self.app.backend.append(failure(task.task_id, state, error))
