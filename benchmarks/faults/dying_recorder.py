"""A recorder that dies, as by kill -9, after its first batch is committed and before it is confirmed."""

import asyncio
import os
import signal

from howl.celery import create_app
from howl.config import load_settings
from howl.server.recorder.outcome_streams import Batch, OutcomeStream
from howl.server.recorder.recorder import Recorder


class Unconfirmed(OutcomeStream):
    """A stream that kills its process where it should confirm."""

    async def confirm(self, batch: Batch) -> None:
        if batch.entry_ids:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Record one batch."""
    settings = load_settings()
    recorder = Recorder(settings, create_app(settings))
    recorder.outcomes = Unconfirmed(settings)
    asyncio.run(recorder.run())


if __name__ == "__main__":
    main()
