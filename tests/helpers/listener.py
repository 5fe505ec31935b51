"""What workers have told NATS: the stream of events, as `howl server` makes it, and all that is in it."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import nats
from nats.aio.client import Client
from nats.js.api import StreamConfig

from howl.config import Settings
from tests.helpers.support import eventually


@dataclass(frozen=True)
class Told:
    """One message."""

    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(json.loads(self.data))


class Listener:
    """Nobody takes events out of this stream."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{settings.subject_prefix}-events"

    def keep(self, *, answering: bool = True) -> "Listener":
        """Have NATS keep events from now on, and say so to who told them."""
        self.answering = answering
        asyncio.run(self._with_client(self._make))
        return self

    def messages(self) -> list[Told]:
        """All that were told, in order; a NATS that has just come back may take a while to find them."""
        (told,) = eventually(self._answer)
        return list(told)

    def _answer(self) -> list[list[Told]]:
        try:
            return [asyncio.run(self._with_client(self._read))]
        except nats.errors.Error:
            return []

    def events(self) -> list[dict[str, Any]]:
        return [event for message in self.messages() for event in message.events]

    def of_task(self, task_id: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event.get("uuid") == task_id]

    def kinds(self) -> list[str]:
        """What was told, without heartbeats."""
        return [event["type"] for event in self.events() if event["type"] != "worker-heartbeat"]

    async def _with_client(self, call: Any) -> Any:
        client = await nats.connect(self.settings.nats(), connect_timeout=5)
        try:
            return await call(client)
        finally:
            await client.close()

    async def _make(self, client: Client) -> None:
        subjects = [f"{self.settings.subject_prefix}.events.*"]
        keeping = StreamConfig(name=self.name, subjects=subjects, max_bytes=64 << 20, no_ack=not self.answering)
        await client.jetstream().add_stream(keeping)

    async def _read(self, client: Client) -> list[Told]:
        stream = client.jetstream()
        last = (await stream.stream_info(self.name)).state.last_seq
        found = [await stream.get_msg(self.name, number) for number in range(1, last + 1)]
        return [Told(message.subject or "", dict(message.headers or {}), message.data or b"") for message in found]
