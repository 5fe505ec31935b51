"""Leave for bursts: runs ask over NATS, and the budget decides; bursts that have ended are settled meanwhile."""

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import replace

from nats.aio.msg import Msg
from pydantic import ValidationError

from howl.burst import budget, github
from howl.burst.api import is_configured
from howl.burst.budget import Run
from howl.burst.leave import Job, LeaveAnswer, LeaveRequest
from howl.burst.request import BurstRequest
from howl.config import Settings
from howl.db import session
from howl.errors import DatabaseUnavailable, GitHubFailed
from howl.messaging import Connection
from howl.tls import reason

logger = logging.getLogger(__name__)

#: Seconds between two looks at what has ended.
ROUND = 30.0
#: Most questions that wait for an answer; whoever asks beyond is not heard, and asks again.
WAITING = 100
#: Most questions of a minute that are decided: each leaves a row, and who has a worker's credential can ask for ever.
A_MINUTE = 60


class Porter:
    """Answers those who ask for leave."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.subject = f"{settings.subject_prefix}.leave"
        #: The only subjects that are answered: with a reply subject of its own choice, a worker could have this
        #: server speak to JetStream with its rights.
        self.inboxes = f"{settings.subject_prefix}.inbox."
        #: Monotonic seconds at which the last ones were decided.
        self.recent: deque[float] = deque(maxlen=A_MINUTE)

    async def run(self) -> None:
        """Until cancelled; raises NATS's errors or DatabaseUnavailable, and loses nothing by being run again."""
        client = await Connection().open(self.settings, "howl leave", lasting=True, error_cb=_complain)
        try:
            # Of several servers one hears each question; its answers come one after the other.
            await client.subscribe(self.subject, queue="leave", cb=self.answer, pending_msgs_limit=WAITING)
            while True:
                await asyncio.to_thread(self.look_after)
                await asyncio.sleep(ROUND * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret
        finally:
            await client.close()

    async def answer(self, message: Msg) -> None:
        """One question; what is none of HOWL's is not answered."""
        if not message.reply.startswith(self.inboxes):
            logger.warning("A question for leave wants its answer on %.100s, no inbox: not answered.", message.reply)
            return
        answer = await asyncio.to_thread(self.decide, message.data)
        await message.respond(answer.model_dump_json().encode())

    def decide(self, question: bytes) -> LeaveAnswer:
        """The budget's answer; a question that cannot be decided now is to be asked again."""
        try:
            asked = LeaveRequest.model_validate_json(question)
        except ValidationError:
            logger.warning("A question for leave cannot be read.")
            return LeaveAnswer(failed="The server cannot read this question: is it as new as this HOWL?")
        if self._is_too_often():
            logger.warning("Run %s is not answered: %d asked within a minute.", asked.run_id, A_MINUTE)
            return LeaveAnswer(failed="Too many runs ask for leave at once: try again in a minute.")
        try:
            leave = self._ask(asked)
        except DatabaseUnavailable as error:
            logger.warning("Run %s is not answered: %s", asked.run_id, error.message)
            return LeaveAnswer(failed="The server cannot decide now, its database is away: try again.")
        logger.info("Run %s asks for %d workers: %s.", asked.run_id, asked.workers, leave.refused or "granted")
        jobs = [Job(**job) for job in leave.matrix(asked.user)]
        return LeaveAnswer(
            granted=leave.refused is None,
            burst_id=leave.burst_id,
            runtime_minutes=leave.minutes,
            matrix=jobs,
            reason=leave.refused,
        )

    def look_after(self) -> None:
        """Settle bursts that have ended, and hear from GitHub how."""
        with session(self.settings.database()) as opened:
            budget.settle(opened)
        if is_configured(self.settings):
            try:
                github.conclude(self.settings)
            except GitHubFailed as error:
                logger.warning("How runs ended is not known yet: %s", error.message)

    def _is_too_often(self) -> bool:
        now = time.monotonic()
        if len(self.recent) == A_MINUTE and now - self.recent[0] < 60:
            return True
        self.recent.append(now)
        return False

    def _ask(self, asked: LeaveRequest) -> budget.Leave:
        told = BurstRequest(
            workers=asked.workers,
            runtime=asked.runtime,
            concurrency=asked.concurrency,
            tags=tuple(asked.tags),
            queues=tuple(asked.queues),
            requested_by=asked.requested_by,
        )
        request = told if asked.burst_id is None else replace(told, burst_id=asked.burst_id)
        run = Run(repository=asked.repository, run_id=asked.run_id, attempt=asked.attempt)
        with session(self.settings.database()) as opened:
            return budget.ask(opened, self.settings, request, run)


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))
