"""Connections to NATS: nothing that a network or a stranger does to one is waited for without end."""

import asyncio
import json
import logging
import random
import re
from typing import Any, Self
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import Header
from nats.js.client import NO_RESPONDERS_STATUS
from nats.js.errors import APIError, NoStreamResponseError

from howl.config import Settings
from howl.connections.tls import nats_options

logger = logging.getLogger(__name__)

#: What a connection can fail with.
TROUBLE = (NatsError, OSError, TimeoutError)
#: Seconds until one try to connect is given up, and until a connection that says goodbye is cut.
CONNECT_TIMEOUT, CLOSE_TIMEOUT = 5.0, 2.0


def subject_token(name: str) -> str:
    """A worker's or a user's name as one token of a NATS subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def user_token(settings: Settings) -> str:
    """Of the user as whom NATS knows us: its rights name the subjects of his files."""
    return subject_token(urlsplit(settings.nats()).username or "anyone")


def events_stream(subject_prefix: str) -> str:
    """The stream that keeps what workers say until `howl server` has read it."""
    return f"{subject_prefix}-events"


def inbox_prefix(settings: Settings) -> str:
    """What the subjects begin with on which we hear answers: those of our own user, and nobody else's."""
    return f"{settings.subject_prefix}.inbox.{user_token(settings)}"


def receipt_fault(message: Msg, stream: str) -> NatsError | None:
    """What JetStream's word on a message for `stream` says against it; None for a receipt, which names the stream.

    Others may have NATS write to an inbox that they know, also in words that they chose; so nothing else counts.
    """
    if (message.headers or {}).get(Header.STATUS) == NO_RESPONDERS_STATUS:
        return NoStreamResponseError()
    try:
        told = json.loads(message.data)
        if error := told.get("error"):
            return APIError(**{name: error.get(name) for name in ("code", "description", "err_code")})
        if told["stream"] == stream and told["seq"] > 0:
            return None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    return NatsError("JetStream's answer cannot be read")


class Connection(Client):
    """nats-py's client, made for servers that go away at any moment and for messages from strangers."""

    #: What it complained of last.
    complaint: Exception | None = None

    async def open(self, settings: Settings, name: str, *, lasting: bool = False, **options: Any) -> Self:
        """Itself, connected to this installation's NATS, to which it gives its `name`.

        A `lasting` one tries until NATS answers, and is repaired whenever it breaks. Any other is tried once, raises
        one of TROUBLE, and is not repaired. `options` are those of nats-py's `connect`.
        """
        wait = random.uniform(1, 3)  # noqa: S311  # jitter, no secret
        patience: dict[str, Any] = (
            {"max_reconnect_attempts": -1, "reconnect_time_wait": wait}
            if lasting
            # They mean the first connection as well, which would be tried for two minutes.
            else {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.05}
        )
        standard: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, "inbox_prefix": inbox_prefix(settings)}
        options = standard | patience | nats_options(settings) | options
        options["error_cb"] = self._hear_then(options.get("error_cb"))
        try:
            await self.connect(settings.nats(), name=name, **options)
        except TROUBLE as error:
            await self.close()
            # That no server is left to try says nothing; what the last one answered does.
            raise self.complaint or error from error
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Never raises what a server can cause: who closes has no use for it any more."""
        if self._flush_queue is None:
            return  # it never began to connect
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await super().close()
                await self._end_tries()
        except TROUBLE as error:
            logger.debug("NATS did not part as it should: %r.", error)
            self.abort()
        except BaseException:
            self.abort()
            raise

    async def _end_tries(self) -> None:
        """End the task that connects again: asyncio may lose a cancellation that comes together with an answer."""
        tries = self._reconnection_task
        if tries is None or tries.done() or tries is asyncio.current_task():
            return
        while not tries.done():
            tries.cancel()
            await asyncio.wait([tries], timeout=0.1)
        self._status = Client.CLOSED
        self.abort()  # what it has connected meanwhile

    def abort(self) -> None:
        """Cut it at once: what waits to be sent is lost. nats-py would wait to say it, and has no public way."""
        for layer in ("_io_writer", "_bare_io_writer"):  # TLS, which learns only later of what it stands on, and TCP
            if (writer := getattr(self._transport, layer, None)) is not None:
                writer.transport.abort()

    def _hear_then(self, told: Any) -> Any:
        async def hear(error: Exception) -> None:
            self.complaint = error
            if told is not None:
                await told(error)

        return hear

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            # asyncio tells a StreamWriter nothing of a TLS handshake that failed; nats-py would wait for it to close.
            self.abort()
            self._transport = None
            raise

    async def _process_headers(self, headers: Any) -> Any:
        """Headers that nobody can read are none: nats-py would end its reading, and say so to nobody."""
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):  # UnicodeDecodeError is one
            return None
