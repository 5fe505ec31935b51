"""Checks of `howl doctor` for Redis. None of them changes anything, whatever the credential may do."""

import asyncio
import math
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, NoPermissionError, NoScriptError, ResponseError

from howl.broker import set_aside
from howl.broker.bounded_reads import REMOVED
from howl.broker.namespaces import DEFAULT_USER, namespace_of
from howl.connections.tls import redis_options
from howl.doctor import failing_parts
from howl.doctor.finding import Answer, beware, well, wrong
from howl.doctor.network import WAY
from howl.doctor.visit import STEP_TIMEOUT, Step, Visit

DEFAULT_PORT = 6379
#: Most round trips measured, and most seconds for all but the slowest.
PINGS, PINGING = 7, 0.5
#: Seconds of a round trip from which short tasks suffer; seconds between two clocks from which times mislead, and from
#: which tasks expire unseen.
FAR, CLOCKS_DIFFER, CLOCKS_LIE = 0.3, 2.0, 30.0
#: Seconds to wait for a Redis that is starting, within the step's own limit.
LOADING = STEP_TIMEOUT / 2
#: Write commands of scripts, as in turn.lua and push.lua; and versions from which on none of their writes is lost.
WRITTEN = (("LPUSH", "x"), ("RPOP",), ("HSET", "x", "y"), ("HDEL", "x"), ("XADD", "*", "x", "y"), ("ZADD", "1", "x"))
MENDED = {"redis": (8, 6), "valkey": (9, 1, 2)}
#: Seconds without a read after which the recorder is away: it reads several times a second, unless PostgreSQL is slow.
SILENT = 10.0
#: Celery's default queue, where none is named.
DEFAULT_QUEUE = "celery"
NO_SUCH_SCRIPT = "0" * 40
#: Commands for those who run Redis only, and a key that is not HOWL's.
FORBIDDEN = {
    "CONFIG GET": ("CONFIG", "GET", "maxmemory"),
    "ACL LIST": ("ACL", "LIST"),
    "CLIENT LIST": ("CLIENT", "LIST"),
    "reading other keys": ("GET", "not-howl-doctor"),
}


async def login_succeeds(visit: Visit) -> Answer:
    visit.client = Redis.from_url(
        visit.url, retry=Retry(NoBackoff(), 0), decode_responses=True, max_connections=1,
        socket_timeout=STEP_TIMEOUT, socket_connect_timeout=STEP_TIMEOUT, **redis_options(visit.settings),
    )  # fmt: skip
    pool = visit.client.connection_pool
    pool.connection_class = type("Parting", (_Parting, pool.connection_class), {})
    visit.farewell.push_async_callback(visit.client.aclose)
    await _ping(visit.client)
    return well("the credential is accepted")


async def _ping(client: Redis) -> None:
    """Ping Redis, waiting a moment while it loads its data from disk."""
    deadline = asyncio.get_running_loop().time() + LOADING
    while asyncio.get_running_loop().time() < deadline:
        with suppress(BusyLoadingError):
            await client.ping()
            return
        await asyncio.sleep(0.2)
    await client.ping()


class _Parting:
    """A connection whose closing is waited for.

    redis-py leaves a refused one to close by itself, which over TLS takes a round trip that nobody waits for.
    """

    async def disconnect(self, **told: Any) -> None:
        await super().disconnect(**told | {"nowait": False})  # type: ignore[misc]


async def version_is_told(visit: Visit) -> Answer:
    told = await visit.client.execute_command("HELLO")
    facts = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=False))
    return well(f"{facts['server']} {facts['version']}")


async def round_trip_is_short(visit: Visit) -> Answer:
    visit.round_trip, count = await round_trip(visit.client.ping)
    return judge_round_trip(visit.round_trip, count)


async def round_trip(ask: Callable[[], Awaitable[Any]]) -> tuple[float, int]:
    """Return the median of several round trips in seconds, and their number.

    The slowest does not use up time for the others: a machine that paused once is not a far server.
    """
    taken: list[float] = []
    while len(taken) < PINGS and sum(taken) - max(taken, default=0.0) < PINGING:
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), len(taken)


def judge_round_trip(seconds: float, count: int) -> Answer:
    """Judge the median, in seconds, of `count` round trips."""
    said = f"{seconds * 1000:.1f} ms a round trip (median of {count})"
    return well(said) if seconds < FAR else beware(said, "short tasks wait for it: run workers nearer to the server")


async def clocks_agree(visit: Visit) -> Answer:
    """Compare Redis's clock to this machine's, assuming that Redis read its own halfway through the round trip."""
    began = time.time()
    seconds, microseconds = await visit.client.time()
    ended = time.time()
    return judge_clocks(int(seconds) + int(microseconds) / 1e6 - (began + ended) / 2, (ended - began) / 2)


def judge_clocks(ahead: float, doubt: float) -> Answer:
    """Judge by the seconds that the server's clock is ahead of this machine's, give or take `doubt`."""
    said = f"the server's clock is {abs(ahead):.2f} s {'ahead' if ahead > 0 else 'behind'} (± {doubt:.2f} s)"
    off = abs(ahead) - doubt
    if off < CLOCKS_DIFFER:
        return well(said)
    judge, advice = (beware if off < CLOCKS_LIE else wrong), "set the clocks of both machines by NTP"
    return judge(said, advice)


async def rights_suffice(visit: Visit) -> Answer:
    """Check the rights that a worker, or `howl server`, needs."""
    queues = visit.settings.queues or (DEFAULT_QUEUE,)
    refused = [queue for queue in queues if await _is_refused(visit, "LLEN", visit.settings.key(queue))]
    if refused:
        return wrong(f"the queue {', '.join(refused)} is not granted", "grant it: `howl init join --queues …`")
    # Every turn.lua call runs the second, which users of an earlier version may not run.
    said = ("EVALSHA", NO_SUCH_SCRIPT, "0"), ("GETRANGE", namespace_of(visit.settings).key("outcomes:bytes"), "0", "0")
    if any([await _is_refused(visit, *command) for command in said]):
        return wrong("scripts are not granted", "bring Redis's users up to date: run `howl init` on the server")
    return well(f"may use {', '.join(queues)}")


async def rights_end_somewhere(visit: Visit) -> Answer | None:
    """Check that Redis refuses what a burst machine's credential must not do."""
    if not visit.as_worker:
        return None
    granted = [name for name, command in FORBIDDEN.items() if not await _is_refused(visit, *command)]
    if not granted:
        return well(f"refused, as it should be: {', '.join(FORBIDDEN)}")
    judge = beware if visit.is_here else wrong
    return judge(f"may do too much: {', '.join(granted)}", "give workers a credential of their own: `howl init join`")


async def server_runs(visit: Visit) -> Answer | None:
    """Check that outcomes were read lately, as `howl server` does; a worker may not know."""
    if visit.as_worker:
        return None
    try:
        consumers = await visit.client.xinfo_consumers(visit.settings.key("outcomes"), failing_parts.RECORDER)
    except NoPermissionError:
        raise
    except ResponseError:  # no such stream, or no such group: they were never read
        consumers = []
    return judge_silence(failing_parts.silence(consumers))


def judge_silence(seconds: float) -> Answer:
    """Judge by the seconds since outcomes were last read."""
    if seconds < SILENT:
        return well("`howl server` asks for outcomes")
    since = "ever" if seconds == math.inf else f"for {seconds:,.0f} s"
    return wrong(
        f"nobody runs `howl server`: nobody has asked for outcomes {since}",
        "start it, or see its log: without it nothing is recorded, and nothing of a dead worker comes back",
    )


async def nobody_wrote_too_much(visit: Visit) -> Answer | None:
    """Report what the server removed of workers' values, and how full Redis is; a worker may know neither."""
    if visit.as_worker:
        return None
    memory = await visit.client.info("memory")
    used, most = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
    told = f"{used >> 20:,} MB used" + (f" of {most >> 20:,}" if most else "")
    counts = await visit.client.hgetall(visit.settings.key(REMOVED))
    users = sorted({name.rpartition(":")[0] for name in counts})
    if users:
        sizes = ", ".join(f"{user} {int(counts.get(f'{user}:bytes', 0)):,}" for user in users)
        advice = "if this was no accident, end these credentials: docs/security.md"
        return beware(
            f"{told}; bytes removed lately that workers of a user wrote, too large or too much: {sizes}", advice
        )
    return well(told)


async def what_is_written_lasts(visit: Visit) -> Answer | None:
    """Check that Redis keeps all its data over a restart; None where that cannot be known, or it keeps no log.

    It reads its append-only file as the default user. Before redis/redis#14545 and valkey-io/valkey#3984 it silently
    skipped each transaction, and each script's writes, with a command that this user may not run.
    """
    if visit.as_worker:
        return None
    facts = await visit.client.info("server", "persistence")
    if not int(facts.get("aof_enabled", 0)):
        return None
    async with visit.client.pipeline(transaction=False) as asked:
        for command, *rest in WRITTEN:
            asked.execute_command("ACL", "DRYRUN", DEFAULT_USER, command, visit.settings.key("howl-doctor"), *rest)
        told = await asked.execute(raise_on_error=False)
    # A hosted Redis does not answer this.
    known = [(each[0], answer) for each, answer in zip(WRITTEN, told, strict=True) if isinstance(answer, str)]
    return judge_log([command for command, answer in known if answer != "OK"], *_version(facts))


def _version(facts: Mapping[str, Any]) -> tuple[str, str]:
    kind = "valkey" if "valkey_version" in facts else "redis"
    return kind, str(facts[f"{kind}_version"])


def judge_log(refused: Sequence[str], kind: str, version: str) -> Answer | None:
    """Judge by the commands that the default user may not run; None where nothing is lost."""
    if not refused or tuple(map(int, re.findall(r"\d+", version)[:3])) >= MENDED[kind]:
        return None
    return wrong(
        f"{kind} {version} forgets, when it is started again, what scripts and transactions wrote: its default user "
        f"may not say {', '.join(refused)}",
        "run `howl init` on the server, or give Redis `user default off resetpass ~* &* +@all`: that lets nobody in",
    )


async def nothing_was_set_aside(visit: Visit) -> Answer | None:
    """Report what `howl server` set aside within a day, after a few tries; a worker may not know."""
    if visit.as_worker:
        return None
    told = set_aside.told(await visit.client.hgetall(visit.settings.key(set_aside.SET_ASIDE)))
    if not told:
        return None
    what = "; ".join(f"{kind}: {words}" for kind, words in told.items())
    return beware(what, "their tasks have failed: mend what is told here, then `howl tasks retry ID`, or publish again")


async def servers_parts_are_well(visit: Visit) -> Answer | None:
    """Report failing parts of `howl server`, by its own account; a worker may not know."""
    if visit.as_worker:
        return None
    words = await visit.client.hvals(visit.settings.key(failing_parts.AILING))
    seconds, _ = await visit.client.time()
    return failing_parts.judge(failing_parts.read(words, int(seconds)))


async def _is_refused(visit: Visit, *command: Any) -> bool:
    try:
        await visit.client.execute_command(*command)
    except NoPermissionError:
        return True
    except NoScriptError:
        return False
    return False


STEPS = (
    *WAY,
    Step("login", login_succeeds, "check the port: what listens there is not HOWL's Redis", vital=True),
    Step("round trip", round_trip_is_short, "look at the network between"),
    Step("clock", clocks_agree, "bring Redis's users up to date: run `howl init` on the server"),
    Step("rights", rights_suffice, "look at the log of Redis"),
    Step("limits", rights_end_somewhere, "look at the log of Redis"),
    Step("server", server_runs, "bring Redis's users up to date: run `howl init` on the server"),
    Step("memory", nobody_wrote_too_much, "look at the log of Redis"),
    Step("set aside", nothing_was_set_aside, "look at the log of Redis"),
    Step("parts", servers_parts_are_well, "look at the log of `howl server`"),
    Step("log", what_is_written_lasts, "look at the log of Redis"),
    Step("version", version_is_told, "bring Redis's users up to date: run `howl init` on the server"),
)
