"""JetStream's object store: writing and reading objects as NATS's own clients do, but many pieces at a time."""

import asyncio
import base64
import hashlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ObjectInfo
from nats.js.errors import NotFoundError

from howl.connections.nats import receipt_fault

T = TypeVar("T")

#: Prefix of JetStream's name for the stream of a bucket.
STREAM = "OBJ_"
#: Bytes of a piece, a little less than NATS accepts in one message, and messages in flight at once on a connection: at
#: a round trip of 50 ms that allows 320 MB per second, and no more is queued ahead of requests made meanwhile.
PIECE, WINDOW = 1000 << 10, 16
#: Seconds without an acknowledgement after which a transfer has failed, and seconds between two checks of that.
SILENCE, LOOK = 20.0, 1.0
#: Pieces requested at once, and seconds to wait for the next one.
READ_AHEAD, READ_TIMEOUT = 16, 10.0
#: Pieces measured at once, and subjects that JetStream lists at once.
MEASURED, PAGE = 100, 100_000


def bucket(subject_prefix: str) -> str:
    """Return the name of the artifacts' bucket."""
    return f"{subject_prefix}-artifacts"


def stream_name(bucket: str) -> str:
    return f"{STREAM}{bucket}"


def pieces_subject(bucket: str, nuid: str) -> str:
    """Return the subject of an object's content; its description names the `nuid`."""
    return f"$O.{bucket}.C.{nuid}"


def meta_subject(bucket: str, name: str) -> str:
    """Return the subject of an object's description."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def name_in_meta(token: str) -> str:
    """Return the object named by the last part of a description's subject; empty if it is not valid."""
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        return ""


def digest_of(sha256: bytes) -> str:
    """Return a SHA-256 as descriptions write it."""
    return f"SHA-256={base64.urlsafe_b64encode(sha256).decode()}"


def sha256_of(digest: str) -> bytes:
    """Return the SHA-256 in a digest of a description."""
    return base64.urlsafe_b64decode(digest.removeprefix("SHA-256="))


class Flight:
    """Messages in flight to JetStream over one connection: at most WINDOW at once, each of them acknowledged.

    With nats-py's own `publish_async`, a caller that waits for a message that JetStream refused waits for ever.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        #: Gets an exception when the connection can no longer be used.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Semaphore(WINDOW)
        self._heard = 0.0
        self._inbox: str | None = None
        self._numbers = count(1)
        #: Future, and stream that must answer, by the last part of the subject of the answer.
        self._under_way: dict[str, tuple[asyncio.Future[None], str]] = {}

    async def send(
        self, subject: str, payload: bytes, stream: str, headers: dict[str, str] | None = None
    ) -> asyncio.Future[None]:
        """Send to `stream` when there is room; return its receipt's future. Raises as `patiently`, or NATS's errors."""
        await self._find_room()
        if not self._under_way:
            self.hear()
        number, sent = str(next(self._numbers)), asyncio.get_running_loop().create_future()
        self._under_way[number] = sent, stream
        sent.add_done_callback(partial(self._landed, number))
        try:
            await self.patiently(self._publish(subject, payload, number, headers))
        except BaseException:
            sent.cancel()
            raise
        return sent

    async def _publish(self, subject: str, payload: bytes, number: str, headers: dict[str, str] | None) -> None:
        if self._inbox is None:
            self._inbox = self.client.new_inbox()
            await self.client.subscribe(f"{self._inbox}.*", cb=self._answered)
        await self.client.publish(subject, payload, f"{self._inbox}.{number}", headers)

    async def _answered(self, message: Msg) -> None:
        sent, stream = self._under_way.get(message.subject.rpartition(".")[2], (None, ""))
        if sent is None or sent.done():
            return
        if fault := receipt_fault(message, stream):
            sent.set_exception(fault)
        else:
            sent.set_result(None)

    async def _find_room(self) -> None:
        found = asyncio.ensure_future(self._room.acquire())
        try:
            await self.patiently(found)
        except BaseException:
            if found.done() and not found.cancelled():
                self._room.release()
            raise

    def _landed(self, number: str, sent: asyncio.Future[None]) -> None:
        del self._under_way[number]
        self._room.release()
        if not sent.cancelled():
            sent.exception()  # mark it as retrieved: whoever waits still finds the error in the future
            self.hear()

    def hear(self) -> None:
        """Extend the patience: the far side has answered."""
        self._heard = asyncio.get_running_loop().time()

    async def patiently(self, awaited: Awaitable[T]) -> T:
        """Return its result; raises TimeoutError after SILENCE without acknowledgement, or the exception in `lost`."""
        future, began = asyncio.ensure_future(awaited), asyncio.get_running_loop().time()
        try:
            while True:
                watched: list[asyncio.Future[Any]] = [future, self.lost]
                await asyncio.wait(watched, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                if future.done():
                    return future.result()
                if self.lost.done():
                    self.lost.result()
                if asyncio.get_running_loop().time() - max(self._heard, began) > SILENCE:
                    raise TimeoutError(f"nothing was acknowledged for {SILENCE:g} s")
        finally:
            future.cancel()  # no effect if it is done


async def put(flight: Flight, info: ObjectInfo, read: Callable[[int], bytes]) -> ObjectInfo:
    """Write an object that `read` gives piece by piece, in a thread; return `info` with size, pieces and digest.

    The description is sent when NATS has all the rest. It does not replace an earlier object of the name, as other
    clients do with a right that would also let its holder delete the bucket. Raises as `Flight.send`.
    """

    async def place() -> str:
        return pieces_subject(info.bucket, info.nuid)

    await put_pieces(flight, info, read, place)
    described = flight.send(meta_subject(info.bucket, info.name), description(info), stream_name(info.bucket))
    await flight.patiently(await described)
    return info


async def put_pieces(
    flight: Flight, info: ObjectInfo, read: Callable[[int], bytes], place: Callable[[], Awaitable[str]]
) -> None:
    """Write an object's content, each piece to the subject that `place` names, and complete `info`; raises as `put`."""
    digest, stream = hashlib.sha256(), stream_name(info.bucket)
    info.size, info.chunks = 0, 0
    landing: deque[asyncio.Future[None]] = deque()
    size = (info.options and info.options.max_chunk_size) or PIECE
    async with aclosing(_read_ahead(read, size, digest)) as whole:
        async for piece in whole:
            landing.append(await flight.send(await place(), piece, stream))
            info.size, info.chunks = info.size + len(piece), info.chunks + 1
            while landing and landing[0].done():
                landing.popleft().result()
    while landing:
        await flight.patiently(landing.popleft())
    info.digest = digest_of(digest.digest())


def description(info: ObjectInfo) -> bytes:
    """Return an object's description as NATS's own clients write it, with the current time."""
    info.mtime = datetime.now(UTC).isoformat()
    return json.dumps(info.as_dict()).encode()


async def _read_ahead(read: Callable[[int], bytes], size: int, digest: Any) -> AsyncGenerator[bytes]:
    """Yield pieces, each read while the one before it is sent."""
    reading = asyncio.ensure_future(asyncio.to_thread(_read, read, size, digest))
    try:
        while piece := await reading:
            reading = asyncio.ensure_future(asyncio.to_thread(_read, read, size, digest))
            yield piece
    finally:
        reading.cancel()


def _read(read: Callable[[int], bytes], size: int, digest: Any) -> bytes:
    piece = read(size)
    digest.update(piece)
    return piece


async def pieces(stream: JetStreamContext, info: ObjectInfo) -> AsyncIterator[bytes]:
    """Yield an object's content; raises TimeoutError when a part does not arrive."""
    left = info.chunks or 0
    if not left:
        return
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=3 * READ_TIMEOUT)
    subject, name = pieces_subject(info.bucket, info.nuid), stream_name(info.bucket)
    consumer = await stream.pull_subscribe(subject, stream=name, config=config)
    try:
        while left > 0:
            messages = await consumer.fetch(min(READ_AHEAD, left), timeout=READ_TIMEOUT)
            left -= len(messages)
            for message in messages:
                yield message.data
    finally:
        await consumer.unsubscribe()


async def measure(stream: JetStreamContext, bucket: str, nuid: str, most: int) -> tuple[int, int]:
    """Return how many pieces of an object exist, and their bytes, unread; count until there are `most` or more."""
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=READ_TIMEOUT, headers_only=True
    )
    consumer = await stream.pull_subscribe(pieces_subject(bucket, nuid), stream=stream_name(bucket), config=config)
    number, size, told = 0, 0, await consumer.consumer_info()
    try:
        left = told.num_pending or 0
        while left and number < most:
            for message in await consumer.fetch(min(left, MEASURED), timeout=READ_TIMEOUT):
                number, size, left = number + 1, size + int((message.headers or {})["Nats-Msg-Size"]), left - 1
    finally:
        await consumer.unsubscribe()
        await stream.delete_consumer(stream_name(bucket), told.name)
    return number, size


async def describe(stream: JetStreamContext, bucket: str, name: str) -> ObjectInfo | None:
    """Return an object's description; None if there is no such object, or its description is not valid."""
    try:
        found = await stream.get_last_msg(stream_name(bucket), meta_subject(bucket, name))
        info = ObjectInfo.from_response(json.loads(found.data or b""))
    except (NotFoundError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return None if info.deleted or info.name != name or info.bucket != bucket else info


async def subjects(stream: JetStreamContext, bucket: str, which: str, offset: int) -> dict[str, int]:
    """Return the number of messages by subject, for at most PAGE subjects, after skipping `offset` of them."""
    asked = json.dumps({"subjects_filter": which, "offset": offset}).encode()
    # nats-py's own request has no offset.
    subject = f"$JS.API.STREAM.INFO.{stream_name(bucket)}"
    told = await stream._api_request(subject, asked, timeout=READ_TIMEOUT)  # noqa: SLF001
    return dict(told["state"].get("subjects") or {})


async def remove(stream: JetStreamContext, bucket: str, name: str) -> None:
    """Remove an artifact's description and content, whichever credential wrote it."""
    subjects = (meta_subject(bucket, name), pieces_subject(bucket, name), pieces_subject(bucket, f"*.{name}"))
    for subject in subjects:
        await stream.purge_stream(stream_name(bucket), subject=subject)
