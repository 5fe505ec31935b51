"""`howl server`: run all of its parts side by side until told to stop."""

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from howl.celery import application
from howl.config import Settings
from howl.connections.postgres import SERVER_PATIENCE, patient
from howl.connections.redis import require_redis
from howl.server.artifacts.retention import Curator
from howl.server.bridge.bridge import Bridge
from howl.server.bursts.admission import Porter
from howl.server.bursts.starter import starter_of
from howl.server.failing_parts import Board
from howl.server.maintenance.keeper import Keeper
from howl.server.maintenance.namespace_limits import NamespaceLimits
from howl.server.maintenance.script_watchdog import Watchdog
from howl.server.migrate import require_current
from howl.server.recorder.recorder import Recorder
from howl.server.supervision import Supervised, end

logger = logging.getLogger(__name__)

#: Threads that the parts share: more than all can need at once, or one stalled server (Redis, NATS, PostgreSQL) would
#: hold up parts that do not use it.
THREADS = 32


def main(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises QueueUnavailable or DatabaseUnavailable if it cannot start."""
    require_redis(settings)
    require_current(settings.database())
    app = application(settings)
    # For all threads, in which the parts do their work, not only for this one.
    app.set_default()
    app.loader.import_default_modules()
    with patient(SERVER_PATIENCE):
        asyncio.run(_serve(settings, app))


async def _serve(settings: Settings, app: Celery) -> None:
    recorder = Recorder(settings, app)
    parts = {
        "recorder": recorder.run,
        "bridge": Bridge(settings).run,
        "keeper": Keeper(settings, app).run,
        "porter": Porter(settings).run,
        "curator": Curator(settings).run,
        "watchdog": Watchdog(settings).run,
        "namespace limits": NamespaceLimits(settings).run,
    }
    if starter := starter_of(settings):
        parts["starter"] = starter.run
    board = Board.of(settings)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(Supervised(name, part, board).run(), name=name) for name, part in parts.items()]
        running.append(group.create_task(_say_when_up(recorder, [*parts])))
        await stop.wait()
        await end(running)
    logger.info("HOWL's server is down.")


async def _say_when_up(recorder: Recorder, parts: list[str]) -> None:
    """Log that the server is up once the recorder has polled, which `howl doctor` may check right after that line."""
    await recorder.outcomes.asked.wait()
    logger.info("HOWL's server is up: %s.", ", ".join(parts))
