"""Admission of bursts: runs ask for leave over NATS, and the budget decides; ended bursts are settled meanwhile."""

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import replace

from pydantic import ValidationError

from howl.bursts import budget, github
from howl.bursts.admission import Job, LeaveAnswer, LeaveRequest
from howl.bursts.budget import Run
from howl.bursts.github_api import is_configured
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import Connection, user_token
from howl.connections.postgres import session
from howl.errors import DatabaseUnavailable, GitHubFailed
from howl.server.requests import Question, Questions

logger = logging.getLogger(__name__)

#: Seconds between two checks for ended bursts.
ROUND = 30.0
#: Maximum questions decided per minute for one credential; anyone may hold a credential and ask endlessly.
A_MINUTE = 20


class Porter:
    """Answers questions for leave."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.own = user_token(settings)
        #: Monotonic seconds at which the last questions were decided, by credential.
        self.recent: dict[str, deque[float]] = {}
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Run until cancelled. Raises NATS's errors or DatabaseUnavailable; running it again loses nothing."""
        client = await Connection().open(self.settings, "howl leave", lasting=True, error_cb=_complain)
        try:
            self.client = client
            questions = Questions(client, self.settings, "leave", self.answer)
            await questions.begin()
            while True:
                await questions.be_there()
                await asyncio.to_thread(self.look_after)
                await asyncio.sleep(ROUND * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret
        finally:
            await client.close()

    async def answer(self, question: Question) -> None:
        """Answer one question at a time; raises NATS's errors."""
        async with self._turn:
            answer = await asyncio.to_thread(self.decide, question.data, question.user)
        await self.client.publish(question.address, answer.model_dump_json().encode())

    def decide(self, question: bytes, credential: str) -> LeaveAnswer:
        """Return the budget's answer; a question that cannot be decided now is to be asked again."""
        if self._is_too_often(credential):
            return LeaveAnswer(failed="Too many runs ask for leave at once: try again in a minute.")
        try:
            asked = LeaveRequest.model_validate_json(question)
        except ValidationError:
            logger.warning("A question for leave cannot be read, of credential %s.", credential)
            return LeaveAnswer(failed="The server cannot read this question: is it as new as this HOWL?")
        try:
            leave = self._ask(asked, credential)
        except DatabaseUnavailable as error:
            logger.warning("Run %s is not answered: %s", asked.run_id, error.message)
            return LeaveAnswer(failed="The server cannot decide now, its database is away: try again.")
        told = leave.refused or "granted"
        logger.info("Run %s asks for %d workers, as %s: %s.", asked.run_id, leave.workers, credential, told)
        jobs = [Job(**job) for job in leave.matrix(asked.user)]
        return LeaveAnswer(
            granted=leave.refused is None,
            burst_id=leave.burst_id,
            runtime_minutes=leave.minutes,
            matrix=jobs,
            reason=leave.refused,
        )

    def look_after(self) -> None:
        """Settle bursts that have ended, and ask GitHub how they ended."""
        with session(self.settings.database()) as opened:
            budget.settle(opened)
        if is_configured(self.settings):
            try:
                github.conclude(self.settings)
            except GitHubFailed as error:
                logger.warning("How runs ended is not known yet: %s", error.message)

    def _is_too_often(self, credential: str) -> bool:
        now, recent = time.monotonic(), self.recent.setdefault(credential, deque(maxlen=A_MINUTE))
        if len(recent) == A_MINUTE and now - recent[0] < 60:
            return True
        recent.append(now)
        if len(recent) == A_MINUTE and now - recent[0] < 60:
            logger.warning("Credential %s asked for leave %d times within a minute: put off.", credential, A_MINUTE)
        return False

    def _ask(self, asked: LeaveRequest, credential: str) -> budget.Leave:
        told = BurstRequest(
            workers=asked.workers if asked.index is None else 1,
            runtime=asked.runtime,
            concurrency=asked.concurrency,
            tags=tuple(asked.tags),
            queues=tuple(asked.queues),
            requested_by=asked.requested_by,
        )
        begins = asked.burst_id if asked.index is None else None
        request = replace(told, burst_id=begins) if begins else told
        # A holder of the server's own credential needs no leave to start bursts.
        whose = None if credential == self.own else credential
        index = None if asked.index is None else str(asked.index)
        run = Run(
            repository=asked.repository, run_id=asked.run_id, attempt=asked.attempt, index=index, credential=whose
        )  # fmt: skip
        with session(self.settings.database()) as opened:
            return budget.ask(opened, self.settings, request, run)


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))
