"""`howl server`: its parts, side by side until told to stop."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Collection

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from nats.errors import Error as NatsError

from howl.backend import require_redis
from howl.celery import create_app
from howl.config import Settings
from howl.errors import HowlError
from howl.server.bridge import Bridge
from howl.server.curator import Curator
from howl.server.keeper import Keeper
from howl.server.leave import Porter
from howl.server.migrate import require_current
from howl.server.namespace_limits import NamespaceLimits
from howl.server.recorder import Recorder
from howl.server.starter import starter_of
from howl.server.watchdog import Watchdog
from howl.tls import reason

logger = logging.getLogger(__name__)

#: What a part may meet when a neighbour is away: it is run again, and has lost nothing.
PASSING = (HowlError, redis.RedisError, NatsError, OperationalError, OSError, TimeoutError)
#: Seconds before a part is run again, at first and at most.
FIRST_WAIT, LAST_WAIT = 0.5, 10.0
#: Seconds for the parts to end, before they are told again, and how often they are.
PATIENCE, ATTEMPTS = 1.0, 20


def main(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises QueueUnavailable or DatabaseUnavailable if it cannot begin."""
    require_redis(settings)
    require_current(settings.database())
    app = create_app(settings)
    # Of all threads, in which the parts do their work, not of this one alone.
    app.set_default()
    app.loader.import_default_modules()
    asyncio.run(_serve(settings, app))


async def _serve(settings: Settings, app: Celery) -> None:
    parts = {
        "recorder": Recorder(settings, app).run,
        "bridge": Bridge(settings).run,
        "keeper": Keeper(settings, app).run,
        "porter": Porter(settings).run,
        "curator": Curator(settings).run,
        "watchdog": Watchdog(settings).run,
        "namespace limits": NamespaceLimits(settings).run,
    }
    if starter := starter_of(settings):
        parts["starter"] = starter.run
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_keep_running(name, part), name=name) for name, part in parts.items()]
        logger.info("HOWL's server is up: %s.", ", ".join(parts))
        await stop.wait()
        await end(running)
    logger.info("HOWL's server is down.")


async def end(running: Collection[asyncio.Task[None]]) -> None:
    """Cancel until it is heard: nats-py, closing while it connects again, keeps a cancellation to itself."""
    for _ in range(ATTEMPTS):
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=PATIENCE)
        if not running:
            return


async def _keep_running(name: str, part: Callable[[], Awaitable[None]]) -> None:
    """Run a part again whenever something it needs went away: one line a time, longer waits, never giving up."""
    wait = FIRST_WAIT
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await part()
        except PASSING as error:
            logger.warning("The %s stopped: %s. It starts again in a moment.", name, reason(error))
        if asyncio.get_running_loop().time() - began > LAST_WAIT:
            wait = FIRST_WAIT
        await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, no secret
        wait = min(2 * wait, LAST_WAIT)
