"""One worker from start to deadline: `howl worker`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.utils.nodenames import default_nodename
from celery.worker import state

import howl
from howl.celery import install
from howl.config import Settings, load_settings
from howl.errors import InvalidRequest
from howl.worker.lifecycle import environment
from howl.worker.lifecycle.identity import default_name

logger = logging.getLogger(__name__)

#: Seconds before its deadline at which a worker stops taking tasks.
DEFAULT_GRACE = 90.0


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of `howl worker`; None leaves one to the settings."""

    name: str | None = None
    #: Seconds until the worker must be gone; None: it stays.
    runtime: float | None = None
    #: Seconds before that at which it stops taking tasks; None: 90, or a quarter of a short runtime.
    grace: float | None = None
    #: Seconds without a task after which it leaves; None: it stays.
    idle_exit: float | None = None
    concurrency: int | None = None
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    #: prefork, threads or solo.
    pool: str = "prefork"
    origin: str | None = None
    loglevel: str = "INFO"


def run(options: WorkerOptions) -> None:
    """Work until told to stop, or until the deadline or idleness ends it; raises SystemExit with the exit status."""
    settings = _settings(options)
    plan = options.runtime and (time.monotonic() + options.runtime, _grace(options.runtime, options.grace))
    app = install(howl.app, settings)  # before its environment goes, which modules may read while they are imported
    environment.withdraw(settings)  # from here on this process is a worker: all refusals come before
    if plan:
        _in_background(_leave_in_time, *plan)
    # Not app.worker_main: the `celery` command loads every plugin that is installed, which takes longer than all else.
    worker = app.Worker(**_arguments(options, settings))
    if options.idle_exit is not None:
        _in_background(_leave_when_idle, worker, options.idle_exit)
    worker.start()
    sys.exit(worker.exitcode)


def _in_background(watch: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=watch, args=arguments, name=f"howl{watch.__name__}", daemon=True).start()


def _grace(runtime: float, wanted: float | None) -> float:
    if wanted is None:
        return min(DEFAULT_GRACE, runtime / 4)
    if wanted >= runtime:
        raise InvalidRequest(f"The runtime ({runtime:g} s) must be longer than the grace ({wanted:g} s) for draining.")
    return wanted


def _settings(options: WorkerOptions) -> Settings:
    """Load this process's settings; what its command line says takes precedence."""
    deadline = options.runtime and datetime.now(UTC) + timedelta(seconds=options.runtime)
    given = {"worker_tags": options.tags, "worker_origin": options.origin, "worker_deadline": deadline}
    return load_settings(**{name: value for name, value in given.items() if value})


def _arguments(options: WorkerOptions, settings: Settings) -> dict[str, Any]:
    # Gossip and mingle make workers talk to each other, and dead ones leave bindings behind for ever.
    given = {"without_gossip": True, "without_mingle": True, "optimization": "fair"}
    name = options.name or settings.worker_id or default_name(settings)
    return given | {
        "hostname": default_nodename(name),
        "pool": options.pool,
        "loglevel": options.loglevel,
        "concurrency": options.concurrency,
        "queues": list(options.queues) or None,
    }


def _leave_in_time(deadline: float, grace: float) -> None:
    """Send first the signal that lets running tasks finish; at the deadline, the one that puts them back."""
    _sleep_until(deadline - grace)
    logger.info("The deadline is %g s away: taking no more tasks.", grace)
    _drain()
    _sleep_until(deadline)
    logger.warning("The deadline has come.")
    os.kill(os.getpid(), signal.SIGQUIT)


def _leave_when_idle(worker: Any, patience: float) -> None:
    """Drain when nothing has been held for `patience` seconds since the worker was ready."""
    idle = 0.0
    while idle < patience and state.should_stop is None:
        time.sleep(min(1.0, patience - idle))
        claims = getattr(getattr(worker, "consumer", None), "howl_claims", None)
        idle = claims.session.idle_seconds if claims is not None else 0.0
    if state.should_stop is None:
        logger.info("No task for %g s: leaving.", patience)
        _drain()


def _drain() -> None:
    """Drain as the first signal does, unless one was sent already: another would put back what still runs."""
    if state.should_stop is None:
        os.kill(os.getpid(), signal.SIGTERM)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
