"""The part of `howl server` that looks after files, in this process."""

import asyncio
import threading
from contextlib import suppress
from typing import Self

from howl.config import Settings
from howl.connections.nats import TROUBLE, Connection
from howl.server.artifacts.retention import Curator
from howl.server.artifacts.uploads import Uploads
from howl.server.requests import Questions


class Desk(threading.Thread):
    """Makes the bucket and gives files their places, as a context."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.curator = Curator(settings)
        self.loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._end = asyncio.Event()

    def __enter__(self) -> Self:
        self.start()
        assert self._is_ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self.join(10)

    def run(self) -> None:
        self.loop.run_until_complete(self._answer())
        self.loop.close()

    async def _answer(self) -> None:
        client = await Connection().open(self.settings, "desk", lasting=True)
        try:
            await self.curator.make_bucket(client.jetstream())
            answer = Uploads(client, self.settings, self.curator.room).answer
            questions = Questions(client, self.settings, "upload", answer)
            await questions.begin()
            self._is_ready.set()
            while not self._end.is_set():
                with suppress(*TROUBLE):  # `howl server` would run its part again
                    if client.is_connected:
                        await questions.be_there()
                await asyncio.sleep(0.1)
        finally:
            await client.close()
