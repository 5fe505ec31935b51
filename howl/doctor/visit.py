"""A visit to one server: its checks in order, each within a time limit, up to one that makes the rest pointless."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from howl.config import LOOPBACK_HOSTS, Settings
from howl.connections.explain import reason
from howl.doctor.finding import Answer, Finding, Verdict, beware, wrong

#: Most seconds of a check, and of all checks of a visit: with the program's start, below five.
STEP_TIMEOUT, VISIT_TIMEOUT = 2.0, 3.5
#: Most characters of a client library's error text, which may quote a stranger.
QUOTED = 160
#: Seconds that closing a connection may take when no time is left.
GOODBYE_TIMEOUT = 0.3


@dataclass
class Visit:
    """State that the checks of one server share with those after them."""

    server: str
    url: str = field(repr=False)
    port: int
    settings: Settings
    as_worker: bool
    #: Addresses that the name resolves to.
    addresses: list[str] = field(default_factory=list)
    #: The connection, logged in.
    client: Any = None
    #: Seconds of a round trip.
    round_trip: float = 0.0
    #: Callbacks that close connections at the end.
    farewell: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self.host, self.scheme = parts.hostname or "", parts.scheme
        self.port = parts.port or self.port

    @property
    def is_here(self) -> bool:
        """Return whether the server is on this machine, where one credential for everything endangers nobody."""
        return self.host in LOOPBACK_HOSTS


@dataclass(frozen=True)
class Step:
    """A check: `look` returns an answer, or None if it does not apply, or raises; then `advice` says what to do."""

    check: str
    look: Callable[[Visit], Awaitable[Answer | None]]
    advice: str
    #: Whether the checks after it are pointless when it fails.
    vital: bool = False


async def examine(visit: Visit, steps: Sequence[Step]) -> list[Finding]:
    """Run checks in order until the rest is pointless; never raises what a server can cause."""
    deadline = asyncio.get_running_loop().time() + VISIT_TIMEOUT
    findings: list[Finding] = []
    for step in steps:
        answer = await _ask(visit, step, deadline)
        if answer is not None:
            findings.append(Finding(answer.verdict, answer.said, answer.advice, visit.server, step.check))
            if step.vital and answer.verdict is Verdict.FAILURE:
                break
    await _leave(visit, deadline)
    return findings


async def _ask(visit: Visit, step: Step, deadline: float) -> Answer | None:
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        return beware("not looked at: the server answers too slowly", "try again from nearer, or when it is idle")
    limit = min(STEP_TIMEOUT, left)
    try:
        async with asyncio.timeout(limit):
            return await step.look(visit)
    except TimeoutError:
        return wrong(f"no answer within {limit:.2g} s", step.advice)
    except Exception as error:  # noqa: BLE001  # a stranger's bytes reach every client library: all it raises is told
        return wrong(*_explained(error, step.advice))


def _explained(error: Exception, advice: str) -> tuple[str, str]:
    """Return what is wrong, and what to do: known causes have their own advice."""
    told, raw = reason(error), (str(error).strip().splitlines() or [""])[0].rstrip(".")
    cause, _, known = told.partition(": ")
    return (cause, known) if known and told != raw else (told[:QUOTED], advice)


async def _leave(visit: Visit, deadline: float) -> None:
    """Close connections in the time that is left: on a busy machine, clients take longer to do so."""
    left = deadline - asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(max(left, GOODBYE_TIMEOUT)):
            await visit.farewell.aclose()
    except Exception:  # noqa: BLE001, S110  # the findings are complete
        pass
