"""Uploads from a worker's process to JetStream: one connection in a loop of its own, made anew after a fork."""

import asyncio
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Self

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError, NoStreamResponseError
from pydantic import ValidationError

from howl.artifacts import store
from howl.config import Settings
from howl.connections import nats
from howl.connections.explain import is_refused_login, reason
from howl.errors import ArtifactFailed, ArtifactRefused, HowlError
from howl.server_requests import KEPT, Answers, Asker, Piece, Refused, Whole, answer_in, pieces_of

logger = logging.getLogger(__name__)

#: Times an upload is tried, from its beginning each time.
TRIES = 5
#: Seconds before it is tried again, at first and at most.
FIRST_WAIT, LAST_WAIT = 1.0, 8.0
#: Seconds without an upload after which the connection is closed.
IDLE = 60.0
#: Seconds that an upload of any size may take.
LONGEST = 3600.0
#: Places asked for at once, and most that a file has ahead of its pieces: they are valid for some minutes only.
AT_ONCE, AHEAD = 16, 32
#: JetStream's error codes for "no room": in the bucket, in the account, on the server's disk.
NO_ROOM = (10077, 10023, 10047, 10002)
OPTIONS = ObjectMetaOptions(max_chunk_size=store.PIECE)
NO_RIGHT = (
    "This worker's credential may not leave files at NATS: run `howl init` on the server once more, and `howl server` "
    "of the same version."
)

#: Returns a function that reads so many bytes of the file at a time, from its beginning.
Source = Callable[[], Callable[[int], bytes]]

_lock = threading.Lock()
_uploader: "Uploader | None" = None


def upload(settings: Settings, name: str, source: Source, size: int) -> ObjectInfo:
    """Store a file of at most `size` bytes under a random name, and return its description in JetStream.

    Raises ArtifactRefused, ArtifactFailed or NotConfigured.
    """
    global _uploader  # one connection a process, whichever of its threads needs it first
    settings.nats()
    with _lock:
        if _uploader is None:
            _uploader = Uploader(settings)
    return _uploader.upload(name, source, size)


def _forget() -> None:
    """Start afresh in a forked process: it has neither thread nor connection, and may not use the lock it inherits."""
    global _lock, _uploader  # likewise
    _lock, _uploader = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)


class Uploader:
    """Uploads of one process, side by side over one connection."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loop = asyncio.new_event_loop()
        self._connecting = asyncio.Lock()
        self._connection: Connection | None = None
        #: Uploads under way, and the call that will close the connection.
        self._busy = 0
        self._closing: asyncio.TimerHandle | None = None
        threading.Thread(target=self.loop.run_forever, name="howl-uploads", daemon=True).start()

    def upload(self, name: str, source: Source, size: int) -> ObjectInfo:
        """Upload a file; called from any thread, which waits."""
        under_way = asyncio.run_coroutine_threadsafe(self._upload(name, source, size), self.loop)
        try:
            return under_way.result(LONGEST)
        except BaseException:  # the task's time may be over
            under_way.cancel()
            raise

    async def _upload(self, name: str, source: Source, size: int) -> ObjectInfo:
        self._busy += 1
        if self._closing is not None:
            self._closing.cancel()
        try:
            return await self._try_repeatedly(name, source, size)
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._closing = self.loop.call_later(IDLE, self._close)

    async def _try_repeatedly(self, name: str, source: Source, size: int) -> ObjectInfo:
        wait = FIRST_WAIT
        for tried in range(1, TRIES + 1):
            try:
                return await self._try(name, source, size)
            except nats.TROUBLE as error:
                if _is_final(error) or tried == TRIES:
                    raise self._explained(name, error) from error
                logger.warning("The file %r is not stored yet (%s): once more in a moment.", name, reason(error))
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
            wait = min(2 * wait, LAST_WAIT)
        raise AssertionError("the last try returns or raises")

    async def _try(self, name: str, source: Source, size: int) -> ObjectInfo:
        """Upload once, under an id of its own: a failed try leaves pieces, which must not mix with the next one's."""
        connection, artifact_id = await self._connected(), secrets.token_hex(16)
        bucket = store.bucket(self.settings.subject_prefix)
        info = ObjectInfo(name=artifact_id, bucket=bucket, nuid="", description=name, options=OPTIONS)
        try:
            async with aclosing(Places(connection, info, size)) as places:
                await store.put_pieces(connection.flight, info, source(), places.next)
                await places.conclude()
        except TimeoutError as error:
            connection.give_up(error)
            connection.abort()
            raise
        return info

    async def _connected(self) -> "Connection":
        async with self._connecting:
            if self._connection is None or not self._connection.is_usable:
                self._connection = await Connection().begin(self.settings)
            return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._last_close = self.loop.create_task(connection.close())

    def _explained(self, name: str, error: Exception) -> HowlError:
        if isinstance(error, APIError) and error.err_code in NO_ROOM:
            return ArtifactRefused(
                f"The file {name!r} is not kept, for the server's room for files is full: raise HOWL_ARTIFACT_ROOM or "
                "lower HOWL_ARTIFACT_RETENTION there."
            )
        if isinstance(error, UploadRefused) and error.is_final:
            return ArtifactRefused(f"The file {name!r} is not kept: {error.why}")
        if _is_forbidden(error):
            return ArtifactRefused(NO_RIGHT)
        if isinstance(error, NoStreamResponseError):
            why = "nobody keeps files there: see whether `howl server` runs, and is as new as this worker"
        else:
            why = reason(error)
        return ArtifactFailed(f"The file {name!r} could not be stored at NATS, tried {TRIES} times: {why}.")


class Places:
    """The places for the pieces of one file: the server gives them, some pieces ahead, while it has room for them."""

    def __init__(self, connection: "Connection", info: ObjectInfo, size: int) -> None:
        self.connection, self.info, self.size = connection, info, size
        #: Numbers of pieces that there may be, that a place was asked for, and that were given one.
        self.most, self.asked, self.given = pieces_of(size), 0, 0
        self._answers: Answers = asyncio.Queue()

    async def next(self) -> str:
        """Return a place for one piece; raises UploadRefused, ArtifactFailed, or as `Flight.send`."""
        if self.given == self.most:
            raise ArtifactFailed(f"{self.info.description!r} grew while it was read: leave it when it is written.")
        while self.asked < self.most and self.asked - self.given < AHEAD:
            number = min(AT_ONCE, self.most - self.asked)
            self.asked += number
            await self._ask(Piece(artifact_id=str(self.info.name), size=self.size, pieces=number))
        answer = await self._answer()
        if not answer.reply:
            raise _refusal(answer)
        self.given += 1
        return str(answer.reply)

    async def conclude(self) -> None:
        """Have the server check what came, and describe the file; raises likewise."""
        while self.given < self.asked:  # fewer were needed
            await self._answer()
            self.given += 1
        info = self.info
        await self._ask(
            Whole(
                artifact_id=str(info.name), name=info.description or "", size=info.size or 0, pieces=info.chunks or 0,
                digest=str(info.digest),
            )
        )  # fmt: skip
        answer = await self._answer()
        if answer.data != KEPT:
            raise _refusal(answer)

    async def aclose(self) -> None:
        """Stop waiting for answers."""
        self.connection.asker.forget(self._answers)

    async def _answer(self) -> Msg:
        return await self.connection.flight.patiently(answer_in(self._answers))

    async def _ask(self, question: Piece | Whole) -> None:
        await self.connection.asker.ask("upload", question.model_dump_json().encode(), self._answers)


def _refusal(answer: Msg) -> NatsError:
    try:
        told = Refused.model_validate_json(answer.data)
    except ValidationError:
        return NatsError("the server's answer cannot be read")
    return UploadRefused(told.why, is_final=told.is_final)


class UploadRefused(NatsError):
    """The server gives no place for a file: for good, or just now."""

    def __init__(self, why: str, *, is_final: bool) -> None:
        super().__init__(why)
        self.why, self.is_final = why, is_final


class Connection(nats.Connection):
    """A connection that is not repaired: what was under way when it broke begins anew on another."""

    def __init__(self) -> None:
        super().__init__()
        self.flight = store.Flight(self)
        self.asker: Asker

    async def begin(self, settings: Settings) -> Self:
        """Connect, and return itself; raises one of nats.TROUBLE."""
        self.asker = Asker(self.flight, settings)
        return await self.open(settings, "howl uploads", error_cb=self._hear, closed_cb=self._end)

    @property
    def is_usable(self) -> bool:
        return self.is_connected and not self.flight.lost.done()

    def give_up(self, error: Exception) -> None:
        """Raise the error in whatever waits for this connection, or for it to have room."""
        if not self.flight.lost.done():
            self.flight.lost.set_exception(error)
            self.flight.lost.exception()  # mark it as seen: nobody may be waiting

    async def _hear(self, error: Exception) -> None:
        if _is_forbidden(error):
            self.give_up(error)

    async def _end(self) -> None:
        self.give_up(ConnectionError("the connection broke"))


def _is_final(error: Exception) -> bool:
    """Return whether another try would get the same answer."""
    no_room = isinstance(error, APIError) and error.err_code in NO_ROOM
    refused = isinstance(error, UploadRefused) and error.is_final
    return refused or no_room or _is_forbidden(error) or is_refused_login(error)


def _is_forbidden(error: BaseException) -> bool:
    return "permissions violation" in str(error).lower()
