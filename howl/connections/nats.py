"""Connections to NATS that never wait without end, whatever the network or a stranger does."""

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

#: Errors that a connection can fail with.
TROUBLE = (NatsError, OSError, TimeoutError)
#: Seconds after which one attempt to connect is given up, and after which a closing connection is aborted.
CONNECT_TIMEOUT, CLOSE_TIMEOUT = 5.0, 2.0


def subject_token(name: str) -> str:
    """Return a worker's or a user's name as one token of a NATS subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def user_token(settings: Settings) -> str:
    """Return the token of the NATS user that we log in as; its rights name the subjects of its files."""
    return subject_token(urlsplit(settings.nats()).username or "anyone")


def events_stream(subject_prefix: str) -> str:
    """Return the name of the stream that keeps workers' events until `howl server` has read them."""
    return f"{subject_prefix}-events"


def inbox_prefix(settings: Settings) -> str:
    """Return the prefix of the subjects on which we receive answers: those of our own user, and nobody else's."""
    return f"{settings.subject_prefix}.inbox.{user_token(settings)}"


def receipt_fault(message: Msg, stream: str) -> NatsError | None:
    """Return the error in JetStream's answer to a message for `stream`; None for a receipt, which names the stream.

    Others may have NATS write to an inbox that they know, even text of their choice, so nothing else counts.
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
    """A nats-py client for servers that may go away at any moment and for messages from strangers."""

    #: The last error that nats-py reported.
    complaint: Exception | None = None

    async def open(self, settings: Settings, name: str, *, lasting: bool = False, **options: Any) -> Self:
        """Connect to this installation's NATS under a `name`, and return itself.

        A `lasting` connection retries until NATS answers, and reconnects whenever it breaks. Any other is tried once,
        raises one of TROUBLE, and does not reconnect. `options` are those of nats-py's `connect`.
        """
        wait = random.uniform(1, 3)  # noqa: S311  # jitter, no secret
        patience: dict[str, Any] = (
            {"max_reconnect_attempts": -1, "reconnect_time_wait": wait}
            if lasting
            # These also apply to the first connection, which would otherwise be retried for two minutes.
            else {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.05}
        )
        standard: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, "inbox_prefix": inbox_prefix(settings)}
        options = standard | patience | nats_options(settings) | options
        options["error_cb"] = self._hear_then(options.get("error_cb"))
        try:
            await self.connect(settings.nats(), name=name, **options)
        except TROUBLE as error:
            await self.close()
            # "No servers" explains nothing; the last server's answer does.
            raise self.complaint or error from error
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Close the connection; raise nothing that a server can cause, for the caller no longer needs it."""
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
        """Cancel the task that reconnects until it ends: asyncio may lose a cancellation that meets an answer."""
        tries = self._reconnection_task
        if tries is None or tries.done() or tries is asyncio.current_task():
            return
        while not tries.done():
            tries.cancel()
            await asyncio.wait([tries], timeout=0.1)
        self._status = Client.CLOSED
        self.abort()  # a connection that it made meanwhile

    def abort(self) -> None:
        """Cut the connection at once; unsent data is lost. nats-py would wait to send it, and has no public way."""
        for layer in ("_io_writer", "_bare_io_writer"):  # TLS, which only later learns of the layer below, and TCP
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
            # asyncio does not tell a StreamWriter that a TLS handshake failed; nats-py would wait for it to close.
            self.abort()
            self._transport = None
            raise

    async def _process_headers(self, headers: Any) -> Any:
        """Treat unreadable headers as none: nats-py would stop reading, without reporting it."""
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):  # UnicodeDecodeError is one
            return None
