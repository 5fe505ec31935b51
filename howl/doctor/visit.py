"""A visit to one server: its checks in their order, each within a time limit, and none that cannot succeed any more."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from howl.config import LOOPBACK_HOSTS, Settings
from howl.connections.explain import reason
from howl.doctor.finding import Answer, Finding, Verdict, beware, wrong

#: Seconds that a check may take, and all of a visit's: with the start of the program, below five.
STEP_TIMEOUT, VISIT_TIMEOUT = 2.0, 3.5
#: Characters of what a client library says: it may quote a stranger.
QUOTED = 160
#: Seconds that saying goodbye to a server may take when no time is left.
GOODBYE_TIMEOUT = 0.3


@dataclass
class Visit:
    """What the checks of one server know, and tell those after them."""

    server: str
    url: str = field(repr=False)
    port: int
    settings: Settings
    as_worker: bool
    #: Where the name leads to.
    addresses: list[str] = field(default_factory=list)
    #: The connection, logged in.
    client: Any = None
    #: Seconds a round trip takes.
    round_trip: float = 0.0
    #: What is to be closed in the end.
    farewell: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self.host, self.scheme = parts.hostname or "", parts.scheme
        self.port = parts.port or self.port

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, where one credential for all is nobody's danger."""
        return self.host in LOOPBACK_HOSTS


@dataclass(frozen=True)
class Step:
    """A check: `look` answers, or None where the question does not arise; or raises, and `advice` says what to do."""

    check: str
    look: Callable[[Visit], Awaitable[Answer | None]]
    advice: str
    #: Whether there is no point in the checks after it when it fails.
    vital: bool = False


async def examine(visit: Visit, steps: Sequence[Step]) -> list[Finding]:
    """Ask one after the other until there is no point in asking on; never raises what a server can cause."""
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
    except Exception as error:  # noqa: BLE001  # a stranger's bytes reach every client library: whatever they raise is told
        return wrong(*_explained(error, step.advice))


def _explained(error: Exception, advice: str) -> tuple[str, str]:
    """What is the matter, and what to do: known causes bring their own advice."""
    told, raw = reason(error), (str(error).strip().splitlines() or [""])[0].rstrip(".")
    cause, _, known = told.partition(": ")
    return (cause, known) if known and told != raw else (told[:QUOTED], advice)


async def _leave(visit: Visit, deadline: float) -> None:
    """In the time that is left: on a busy machine, a client takes longer to close its connection."""
    left = deadline - asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(max(left, GOODBYE_TIMEOUT)):
            await visit.farewell.aclose()
    except Exception:  # noqa: BLE001, S110  # what was to be found out is known
        pass
