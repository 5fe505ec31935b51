"""Requests to `howl server` over NATS, and their answers: their addresses, and how a worker sends them.

JetStream stores a request, or refuses it at once when too many of the same credential wait; so a client that sends
requests without end fills no memory and blocks nobody. Answers go to the client's own inbox, under a token that nobody
else can guess.
"""

import asyncio
import re
import secrets
from functools import partial
from itertools import count

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError
from pydantic import BaseModel, ConfigDict, Field

from howl.artifacts.store import PIECE, Flight
from howl.config import Settings
from howl.connections.nats import inbox_prefix, user_token

#: Most bytes of a request with its headers, seconds that it waits, and most requests of one credential that wait.
LARGEST, LONGEST, MOST = 16 << 10, 30.0, 32
#: Seconds for which a place for a piece of a file is valid: NATS must have the piece by then.
PIECE_TIME = 300
#: Header that says where the answer goes, below the credential's inbox, and its pattern.
ANSWER_TO, ADDRESS = "Howl-Answer", re.compile(r"[A-Za-z0-9]{1,64}\.[0-9]{1,10}")

#: The answer to `Whole` when the file is kept.
KEPT = b"kept"


class Piece(BaseModel):
    """A request for places for more pieces of a file; each answer is a message whose reply subject is the place.

    Strict, as all requests are: anyone with a worker's credential may write anything.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    artifact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    #: Bytes of the whole file.
    size: int = Field(ge=0, lt=1 << 40)
    pieces: int = Field(ge=1, le=64)


class Whole(BaseModel):
    """A request to confirm that the server has all of a file, whose pieces NATS has stored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    artifact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str = Field(max_length=255)
    size: int = Field(ge=0, lt=1 << 40)
    pieces: int = Field(ge=0, lt=1 << 20)
    digest: str = Field(pattern=r"^SHA-256=[A-Za-z0-9_-]{43}=$")


class Refused(BaseModel):
    """A refusal: its reason in a sentence, and `is_final` if another try would get the same."""

    why: str = Field(max_length=1000)
    is_final: bool


def pieces_of(size: int) -> int:
    """Return the most pieces of a file of `size` bytes; a file of size 0, as in /proc, may still have content."""
    return max(1, -(-size // PIECE))


def stream_name(subject_prefix: str) -> str:
    """Return the name of the stream that holds the requests."""
    return f"{subject_prefix}-questions"


class TooManyQuestions(NatsError):
    """JetStream accepts no further request."""


Answers = asyncio.Queue[Msg | NatsError]


async def answer_in(answers: Answers) -> Msg:
    """Return the next answer; raises TooManyQuestions, or another error of JetStream for the request."""
    answer = await answers.get()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _tell(answers: Answers, taken: asyncio.Future[None]) -> None:
    """Put an error among the answers if JetStream did not take the request."""
    error = None if taken.cancelled() else taken.exception()
    if isinstance(error, APIError):
        answers.put_nowait(TooManyQuestions("too many questions of this credential's wait, or the server is away"))
    elif isinstance(error, NatsError):
        answers.put_nowait(error)


class Asker:
    """A sender of requests over one connection, whose `flight` reports JetStream's receipts."""

    def __init__(self, flight: Flight, settings: Settings) -> None:
        self.flight = flight
        self.settings = settings
        self._token = secrets.token_hex(16)
        self._numbers = count(1)
        self._answers: dict[str, Answers] = {}
        self._listening = False

    async def ask(self, kind: str, question: bytes, answers: Answers | None = None) -> Answers:
        """Send a request; return the queue of its answers, the given or a new one. Raises as `Flight.send`."""
        answers = answers or asyncio.Queue()
        if not self._listening:
            self._listening = True
            inbox = f"{inbox_prefix(self.settings)}.{self._token}.*"
            await self.flight.patiently(self.flight.client.subscribe(inbox, cb=self._answered))
        number = str(next(self._numbers))
        self._answers[number] = answers
        subject = f"{self.settings.subject_prefix}.{kind}.{user_token(self.settings)}"
        stream = stream_name(self.settings.subject_prefix)
        headers = {ANSWER_TO: f"{self._token}.{number}"}
        taken = await self.flight.send(subject, question, stream, headers)
        taken.add_done_callback(partial(_tell, answers))
        return answers

    def forget(self, answers: Answers) -> None:
        """Stop delivering answers to this queue."""
        self._answers = {number: queue for number, queue in self._answers.items() if queue is not answers}

    async def _answered(self, message: Msg) -> None:
        answers = self._answers.get(message.subject.rpartition(".")[2])
        if answers is not None:
            answers.put_nowait(message)
            self.flight.hear()
