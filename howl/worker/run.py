"""One worker from start to deadline: `howl worker`."""

import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from howl.celery import app
from howl.config import load_settings
from howl.errors import InvalidRequest

logger = logging.getLogger(__name__)

#: Seconds before its deadline at which a worker stops taking tasks.
DEFAULT_GRACE = 90.0


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What `howl worker` was asked for; None leaves it to the settings."""

    name: str | None = None
    #: Seconds until the worker must be gone; None: it stays.
    runtime: float | None = None
    #: Seconds before that at which it stops taking tasks; None: 90, or a quarter of a short runtime.
    grace: float | None = None
    concurrency: int | None = None
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    #: prefork, threads or solo.
    pool: str = "prefork"
    origin: str | None = None
    loglevel: str = "INFO"


def run(options: WorkerOptions) -> None:
    """Work until told to stop, or until the deadline; ends by SystemExit with Celery's exit status."""
    _tell_settings(options)
    if options.runtime is not None:
        plan = (time.monotonic() + options.runtime, _grace(options.runtime, options.grace), options.pool)
        threading.Thread(target=_leave_in_time, args=plan, name="howl-deadline", daemon=True).start()
    app.worker_main(_arguments(options))


def _grace(runtime: float, wanted: float | None) -> float:
    if wanted is None:
        return min(DEFAULT_GRACE, runtime / 4)
    if wanted >= runtime:
        raise InvalidRequest(f"The runtime ({runtime:g} s) must be longer than the grace ({wanted:g} s) for draining.")
    return wanted


def _tell_settings(options: WorkerOptions) -> None:
    """Options become settings before the settings are first read, also by the pool's children."""
    deadline = options.runtime and (datetime.now(UTC) + timedelta(seconds=options.runtime)).isoformat()
    given = {
        "HOWL_WORKER_TAGS": ",".join(options.tags),
        "HOWL_WORKER_ORIGIN": options.origin,
        "HOWL_WORKER_DEADLINE": deadline,
    }
    os.environ.update({name: value for name, value in given.items() if value})


def _arguments(options: WorkerOptions) -> list[str]:
    name = options.name or load_settings().worker_id or f"{socket.gethostname()}-{os.getpid()}"
    # Gossip and mingle make workers talk to each other, and dead ones leave bindings behind for ever.
    arguments = ["worker", "--hostname", name, "--without-gossip", "--without-mingle"]
    arguments += ["--pool", options.pool, "--loglevel", options.loglevel]
    if options.concurrency:
        arguments += ["--concurrency", str(options.concurrency)]
    if options.queues:
        arguments += ["--queues", ",".join(options.queues)]
    return arguments


def _leave_in_time(deadline: float, grace: float, pool: str) -> None:
    """First the signal that lets running tasks finish; at the deadline the one that puts them back."""
    _sleep_until(deadline - grace)
    logger.info("The deadline is %g s away: taking no more tasks.", grace)
    os.kill(os.getpid(), signal.SIGTERM)
    _sleep_until(deadline)
    if pool == "threads":
        logger.warning("The deadline has come, but threads cannot be stopped: waiting for their tasks to end.")
        return
    logger.warning("The deadline has come: putting running tasks back.")
    os.kill(os.getpid(), signal.SIGQUIT)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
