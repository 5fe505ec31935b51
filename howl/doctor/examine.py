"""The complete examination: every server that this machine needs, in parallel."""

import asyncio
import importlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from howl import __version__
from howl.config import LOOPBACK_HOSTS, Settings
from howl.doctor import nats, redis
from howl.doctor.finding import Finding, Verdict
from howl.doctor.visit import GOODBYE_TIMEOUT, VISIT_TIMEOUT, Visit, examine
from howl.errors import DatabaseUnavailable, NotConfigured
from howl.local_stack import outdated


def run(settings: Settings, *, as_worker: bool = False) -> list[Finding]:
    """Return all findings, in under five seconds; `as_worker` checks what a burst machine needs and must not have."""
    # Before any time limit runs: importing it takes longer than some servers may take to answer.
    checks = None if as_worker or settings.database_url is None else _checks_of_postgresql()
    return [*_here(), *asyncio.run(_visits(settings, as_worker, checks))]


def _here() -> list[Finding]:
    said = f"howl {__version__}, celery {version('celery')}, Python {platform.python_version()}"
    return [Finding(Verdict.OK, said, check="version")]


async def _visits(settings: Settings, as_worker: bool, postgresql: Any) -> list[Finding]:
    visits = [
        _visit("redis", settings.redis, redis, settings, as_worker),
        _visit("nats", settings.nats, nats, settings, as_worker),
    ]
    if postgresql is not None:
        visits.append(_visit("postgresql", settings.database, postgresql, settings, as_worker))
    deadline = asyncio.get_running_loop().time() + VISIT_TIMEOUT
    found = await asyncio.gather(*visits)
    if words := outdated(settings.home, settings.urls()):
        said, _, advice = words.rstrip(".").partition(": ")
        found.append([Finding(Verdict.WARNING, said, advice, check="howl up")])
    await _tidied_up(max(deadline - asyncio.get_running_loop().time(), GOODBYE_TIMEOUT))
    return [finding for findings in found for finding in findings] + _where_no_worker_should_reach(settings, as_worker)


async def _tidied_up(limit: float) -> None:
    """Wait for refused clients, which close their connections in tasks of their own."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=limit)


async def _visit(
    server: str, address: Callable[[], str], checks: Any, settings: Settings, as_worker: bool
) -> list[Finding]:
    try:
        visit = Visit(server, address(), checks.DEFAULT_PORT, settings, as_worker)
    except NotConfigured as error:
        said, _, advice = error.message.rstrip(".").partition(": ")
        return [Finding(Verdict.FAILURE, said, advice, server, "settings")]
    return await examine(visit, checks.STEPS)


def _checks_of_postgresql() -> Any:
    """Import PostgreSQL's checks by name: a burst machine has no client for it. Raises DatabaseUnavailable."""
    try:
        return importlib.import_module("howl.server.doctor")
    except ModuleNotFoundError as error:
        raise DatabaseUnavailable(
            f"PostgreSQL cannot be asked without {error.name}: `pip install 'howl[server]'`, or look at this machine "
            "`--as worker`."
        ) from error


def _where_no_worker_should_reach(settings: Settings, as_worker: bool) -> list[Finding]:
    """Report a worker's machine that knows where PostgreSQL is, unless it is this one, where all share settings."""
    host = urlsplit(settings.database_url or "").hostname
    if not as_worker or host is None or host in LOOPBACK_HOSTS:
        return []
    advice = "take HOWL_DATABASE_URL and POSTGRES_PASSWORD away: a worker never needs them"
    return [Finding(Verdict.FAILURE, "this machine is told where PostgreSQL is", advice, "postgresql", "limits")]
