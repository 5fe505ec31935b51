"""Requests for admission, sent to the server over NATS: a burst's jobs reach no database."""

import asyncio
import os
import random
from typing import Annotated

from nats.js.errors import NoStreamResponseError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from howl.artifacts.store import Flight
from howl.broker.namespaces import DEFAULT_USER, user_of
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import TROUBLE, Connection
from howl.errors import InvalidRequest, ServerUnavailable
from howl.queue_names import require_queue
from howl.server_requests import Asker, TooManyQuestions, answer_in

#: Seconds to wait for an answer; attempts at asking (asking again changes nothing).
ANSWER_TIMEOUT, TRIES = 10.0, 3

Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,255}$")]
#: A line shown in a job's log and summary; it can contain neither HTML nor a link.
Sentence = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f<\[]{1,1000}$")]
BURST_ID = r"^[0-9a-f]{32}$"


def _is_queue(name: str) -> str:
    try:
        require_queue(name)
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    return name


QueueName = Annotated[Word, AfterValidator(_is_queue)]


class LeaveRequest(BaseModel):
    """A run's request for admission; strict, because anybody with a worker's credential may write anything."""

    model_config = ConfigDict(extra="forbid", strict=True)

    repository: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$")
    run_id: str = Field(pattern=r"^[0-9]{1,20}$")
    attempt: str = Field("1", pattern=r"^[0-9]{1,6}$")
    workers: int = Field(ge=1, le=10_000)
    #: The one job that asks for itself, because GitHub re-runs it without the plan that asked for all jobs.
    index: int | None = Field(None, ge=1, le=256)
    #: Runtime in seconds.
    runtime: float = Field(gt=0, le=1e6)
    concurrency: int | None = Field(None, ge=1, le=10_000)
    tags: list[Word] = Field(default=[], max_length=50)
    queues: list[QueueName] = Field(default=[], max_length=50)
    #: The burst, if it was granted before its run was started.
    burst_id: str | None = Field(None, pattern=BURST_ID)
    requested_by: Word | None = None
    #: The first part of its workers' names.
    user: str = Field("worker", pattern=r"^[A-Za-z0-9_-]{1,64}$")


class Job(BaseModel):
    """One worker of the run: `index` from 1, and its name."""

    index: int = Field(ge=1, le=256)
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,255}$")


class LeaveAnswer(BaseModel):
    """The server's answer: `reason` if not `granted` (`matrix` is empty then); `failed` if nothing was decided.

    Strict, because a job turns it into outputs, one a line, and reads some of them as code.
    """

    model_config = ConfigDict(strict=True)

    granted: bool = False
    burst_id: str | None = Field(None, pattern=BURST_ID)
    runtime_minutes: float | None = None
    matrix: list[Job] = Field(default=[], max_length=256)
    reason: Sentence | None = None
    failed: Sentence | None = None


def this_run(settings: Settings, **asked: object) -> LeaveRequest:
    """Return a request on behalf of the current GitHub Actions run; raises InvalidRequest outside one."""
    told = os.environ.get
    user = user_of(settings)
    values = {
        "repository": told("GITHUB_REPOSITORY"),
        "run_id": told("GITHUB_RUN_ID"),
        "attempt": told("GITHUB_RUN_ATTEMPT", "1"),
        "requested_by": f"github:{told('GITHUB_EVENT_NAME', 'unknown')} by {told('GITHUB_ACTOR', 'unknown')}",
        "user": "worker" if user == DEFAULT_USER else user,
    }
    try:
        return LeaveRequest.model_validate(values | asked)
    except ValidationError as error:
        raise InvalidRequest(f"Leave is asked by a GitHub Actions run, with {_mistakes(error)}.") from None


def ask(request: LeaveRequest, settings: Settings) -> LeaveAnswer:
    """Return the server's answer; raises ServerUnavailable, NotConfigured."""
    settings.nats()
    return asyncio.run(_Asker(request, settings).ask())


class _Asker:
    def __init__(self, request: LeaveRequest, settings: Settings) -> None:
        self.request, self.settings = request, settings
        self.flight: Flight | None = None
        #: The last error that nats-py reported: its final one, that no server is left to try, names no cause.
        self.complaint: Exception | None = None

    async def ask(self) -> LeaveAnswer:
        for tried in range(1, TRIES + 1):
            try:
                return await self._ask_once()
            except TROUBLE as error:
                if tried == TRIES:
                    raise ServerUnavailable(self._why(error)) from error
            await asyncio.sleep(tried * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
        raise AssertionError("the last try returns or raises")

    async def _ask_once(self) -> LeaveAnswer:
        client = await Connection().open(self.settings, "howl leave", error_cb=self._hear)
        self.flight = Flight(client)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                # Leave out fields that are not set: an older server does not know them.
                question = self.request.model_dump_json(exclude_none=True).encode()
                answers = await Asker(self.flight, self.settings).ask("leave", question)
                return _read((await self.flight.patiently(answer_in(answers))).data)
        finally:
            await client.close()

    async def _hear(self, error: Exception) -> None:
        self.complaint = error
        if "permissions violation" in str(error).lower() and self.flight and not self.flight.lost.done():
            self.flight.lost.set_exception(
                ServerUnavailable("This credential may not ask for leave: run `howl init` on the server once more.")
            )

    def _why(self, error: Exception) -> str:
        if isinstance(error, NoStreamResponseError):
            return "No `howl server` listens at NATS: see on the server whether it runs, and is as new as this one."
        if isinstance(error, TooManyQuestions):
            return f"NATS does not take the question ({error}): try again in a minute."
        if isinstance(error, TimeoutError):
            return f"`howl server` did not answer within {ANSWER_TIMEOUT:g} s: see its log."
        return f"NATS cannot be used ({reason(self.complaint or error)}): `howl doctor --as worker` says more."


def _read(answer: bytes) -> LeaveAnswer:
    try:
        read = LeaveAnswer.model_validate_json(answer)
    except ValidationError:
        raise ServerUnavailable("The server's answer cannot be read: is it as new as this HOWL?") from None
    if read.failed:
        raise ServerUnavailable(read.failed)
    return read


def _mistakes(error: ValidationError) -> str:
    """List the first three mistakes by field name, without values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{problem['loc'][0]} ({problem['msg']})" for problem in problems[:3])
