"""Supervise the parts of `howl server`: a part that ends, for whatever reason, restarts, and the others go on."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection

import redis
from kombu.exceptions import OperationalError
from nats.errors import Error as NatsError

from howl.connections.explain import reason
from howl.errors import HowlError
from howl.server.failing_parts import Board

logger = logging.getLogger(__name__)

#: Errors expected when another server is away; anything else is logged with its traceback.
PASSING = (HowlError, redis.RedisError, NatsError, OperationalError, OSError, TimeoutError)
#: Seconds before a part is restarted, at first and at most.
FIRST_WAIT, LAST_WAIT = 0.5, 10.0
#: Seconds for which a part must run to count as working: longer than it waits for any server that does not answer.
WELL = 20.0
#: Seconds to wait for cancelled parts to end before they are cancelled again, and the number of attempts.
PATIENCE, ATTEMPTS = 1.0, 20


class Supervised:
    """A part that is restarted, with growing delays, however it ends."""

    def __init__(self, name: str, part: Callable[[], Awaitable[None]], board: Board) -> None:
        self.name, self.part, self.board = name, part, board
        #: Times that it has ended since it last worked, and the reason last logged.
        self.times, self._said = 0, ""

    async def run(self) -> None:
        """Run until cancelled."""
        loop, wait = asyncio.get_running_loop(), FIRST_WAIT
        try:
            while True:
                began = loop.time()
                await self._run_once()
                if loop.time() - began > LAST_WAIT:
                    wait = FIRST_WAIT
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
                wait = min(2 * wait, LAST_WAIT)
        finally:
            if self.times:
                await asyncio.to_thread(self.board.forget, self.name)

    async def _run_once(self) -> None:
        getting_well = asyncio.create_task(self._get_well())
        try:
            await self.part()
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            await self._note(error)  # raised within a library; it would end this part silently
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it must not affect other parts
            await self._note(error)
        else:
            await self._note(None)
        finally:
            getting_well.cancel()

    async def _get_well(self) -> None:
        await asyncio.sleep(WELL)
        if self.times:
            logger.info("The %s works again.", self.name)
            self.times, self._said = 0, ""
            await asyncio.to_thread(self.board.forget, self.name)

    async def _note(self, error: BaseException | None) -> None:
        """Log why the part ended, once per reason, and report it for as long as it goes on."""
        self.times += 1
        foreseen = error is None or isinstance(error, PASSING)
        why = "it came to an end by itself" if error is None else reason(error)
        why = why if foreseen else f"{type(error).__name__}: {why}"
        if why != self._said:
            level, trace = (logging.WARNING, None) if foreseen else (logging.ERROR, error)
            logger.log(level, "The %s stopped: %s. It starts again in a moment.", self.name, why, exc_info=trace)
        self._said = why
        await asyncio.to_thread(self.board.tell, self.name, why, self.times)


async def end(running: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: nats-py, closing while it reconnects, swallows a cancellation."""
    for _ in range(ATTEMPTS):
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=PATIENCE)
        if not running:
            return
