"""The checks of `howl doctor` for PostgreSQL."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import psycopg

from howl.bursts import budget
from howl.config import Settings
from howl.connections import postgres_session
from howl.connections.postgres import session
from howl.doctor.finding import Answer, beware, well, wrong
from howl.doctor.network import name_is_known, port_is_open
from howl.doctor.redis import judge_round_trip, round_trip
from howl.doctor.visit import STEP_TIMEOUT, Step, Visit
from howl.errors import NotConfigured, QueueUnavailable
from howl.queries import overview, queues
from howl.server import migrate
from howl.server.recorder import quota

DEFAULT_PORT = 5432
#: Fraction of HOWL_RECORD_LIMIT above which a credential is shown with a warning, and maximum items shown.
NEAR, SHOWN = 0.8, 5

USAGE = """
SELECT redis_user, greatest(level - %(rate)s * extract(epoch FROM now() - updated_at), 0)::float AS used, refused
FROM record_usage ORDER BY used DESC, redis_user LIMIT 100
"""
HAS_USAGE = "SELECT to_regclass('record_usage') IS NOT NULL"
CHORDS = """
SELECT count(*) FILTER (WHERE body_submitted_at IS NULL),
       coalesce(sum(size) FILTER (WHERE body_submitted_at IS NULL), 0),
       count(*) FILTER (WHERE expired AND body_submitted_at > now() - interval '7 days')
FROM chords
"""


async def login_succeeds(visit: Visit) -> Answer:
    visit.client = await psycopg.AsyncConnection.connect(
        visit.url, autocommit=True, connect_timeout=max(2, round(STEP_TIMEOUT)), application_name="howl doctor",
        prepare_threshold=None,
    )  # fmt: skip
    visit.farewell.push_async_callback(visit.client.close)
    await visit.client.execute(postgres_session.SESSION)
    return well("the credential is accepted")


async def way_is_private(visit: Visit) -> Answer | None:
    """Require a local or an encrypted connection."""
    if visit.is_here:
        return None
    if visit.client.pgconn.ssl_in_use:
        return well("encrypted")
    return beware("nothing is encrypted", "keep PostgreSQL on loopback, or add ?sslmode=verify-full to its address")


async def round_trip_is_short(visit: Visit) -> Answer:
    return judge_round_trip(*await round_trip(partial(_scalar, visit, "SELECT 1")))


async def tables_are_current(visit: Visit) -> Answer:
    wanted, found = migrate.head(), None
    if await _scalar(visit, "SELECT to_regclass('alembic_version')"):
        found = await _scalar(visit, "SELECT version_num FROM alembic_version")
    if found == wanted:
        return well(f"at migration {wanted}, the newest")
    if found and not migrate.knows(found):
        return wrong(f"at migration {found}, which this HOWL does not know", "update HOWL on this machine")
    return wrong(f"at migration {found or 'none'}, and this HOWL needs {wanted}", "run `howl migrate`")


async def role_is_modest(visit: Visit) -> Answer:
    if await _scalar(visit, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return beware(
            "the role is a superuser's", "use a role that owns HOWL's tables and no more: `howl init` makes it"
        )
    if not await _scalar(visit, "SELECT has_database_privilege(current_database(), 'CREATE')"):
        return beware("the role may not change the tables", "migrate and serve with the role that owns them")
    return well("owns what it needs, and is no superuser")


async def budget_is_left(visit: Visit) -> Answer | None:
    """Check whether any minutes are left this month; None unless bursts on GitHub are configured."""
    if not visit.settings.github_repository:
        return None
    return judge_budget(await asyncio.to_thread(_sums, visit.settings))


def judge_budget(found: dict[str, Any]) -> Answer:
    told = f"{found['month']}: {found['left']:,g} of {found['budget']:,} minutes left"
    if found["left"] > 0:
        return well(told)
    return beware(told, "no burst gets leave until next month, or until HOWL_BUDGET_MINUTES is raised")


def _sums(settings: Settings) -> dict[str, Any]:
    with session(settings.database()) as opened:
        return budget.sums(opened, settings)


async def credentials_are_within_bounds(visit: Visit) -> Answer | None:
    """Check how much of HOWL_RECORD_LIMIT each credential's workers use; None if none has reported anything."""
    if not await _scalar(visit, HAS_USAGE):
        return None  # an older version's tables, which is reported already
    limit = visit.settings.record_limit
    cursor = await visit.client.execute(USAGE, {"rate": limit / quota.HOUR})
    return judge_usage(await cursor.fetchall(), limit)


def judge_usage(rows: Sequence[tuple[str, float, int]], limit: int) -> Answer | None:
    """Judge rows, highest usage first, of a credential's name, used bytes of the limit and refused entries."""
    if not rows:
        return None
    greedy = [user for user, level, _ in rows if level > NEAR * limit]
    told = "; ".join(_used(*row, limit) for row in rows[: max(len(greedy), 1)][:SHOWN])
    if not greedy:
        return well(told)
    return beware(
        told,
        "its outcomes wait in Redis once it is above: raise HOWL_RECORD_LIMIT if that is honest work, else take the "
        "credential away (`howl init rotate`)",
    )


def _used(user: str, level: float, refused: int, limit: int) -> str:
    told = f"{user} uses {level / limit:.0%} of the {limit >> 20:,} MB an hour that a credential may have recorded"
    return f"{told}; {refused:,} of its entries were refused" if refused else told


async def chords_come_to_an_end(visit: Visit) -> Answer | None:
    """Check how many chords wait, and whether any has expired."""
    if not await _scalar(visit, HAS_USAGE):
        return None
    cursor = await visit.client.execute(CHORDS)
    return judge_chords(*await cursor.fetchone())


def judge_chords(waiting: int, parts: int, expired: int) -> Answer:
    told = f"{waiting:,} wait for {parts:,} parts"
    if not expired:
        return well(told)
    return beware(
        f"{told}; {expired:,} expired within a week",
        "see 'has expired' in the log of `howl server`: their parts were lost, or HOWL_CHORD_RETENTION is too short",
    )


async def files_are_there(visit: Visit) -> Answer | None:
    """Check whether NATS lacks the content of any recorded file: lost, or never arrived."""
    if not await _scalar(visit, HAS_USAGE):
        return None
    return judge_files(await _scalar(visit, "SELECT count(*) FROM artifacts WHERE status = 'missing'"))


def judge_files(missing: int) -> Answer | None:
    """Return None if no file is missing."""
    if not missing:
        return None
    return beware(
        f"{missing:,} files are recorded, and NATS does not have them",
        "`howl artifacts list` shows them: run their tasks again, or restore a backup",
    )


async def queues_are_served(visit: Visit) -> Answer | None:
    """Check whether tasks wait in queues that no active worker serves."""
    if not await _scalar(visit, HAS_USAGE):
        return None
    unserved = await asyncio.to_thread(_queues_nobody_serves, visit.settings)
    return judge_queues(unserved, bursts_come=bool(visit.settings.burst_schedule or visit.settings.burst_when))


def judge_queues(unserved: Sequence[str], *, bursts_come: bool = False) -> Answer:
    """Judge queues whose tasks no worker takes; only a warning if bursts start by themselves."""
    if not unserved:
        return well("no task waits where no worker takes any")
    more = f" and {len(unserved) - SHOWN:,} more" if len(unserved) > SHOWN else ""
    told = f"tasks wait, and no active worker takes any, in {', '.join(unserved[:SHOWN])}{more}"
    return (beware if bursts_come else wrong)(told, "start one: `howl worker --queues NAME`")


def _queues_nobody_serves(settings: Settings) -> list[str]:
    with session(settings.database()) as opened:
        waiting = overview.queues_with_waiting_tasks(opened) | _queues_with_messages(settings)
        return sorted(waiting - overview.served_queues(opened))


def _queues_with_messages(settings: Settings) -> set[str]:
    """Ask Redis: what plain Celery published has no row before it starts."""
    try:
        return {queue for queue, number in queues.waiting(settings).items() if number}
    except (NotConfigured, QueueUnavailable):
        return set()  # reported by the checks of Redis


async def version_is_told(visit: Visit) -> Answer:
    return well(f"PostgreSQL {await _scalar(visit, 'SHOW server_version')}")


async def _scalar(visit: Visit, query: str) -> Any:
    cursor = await visit.client.execute(query)
    row = await cursor.fetchone()
    return row and row[0]


STEPS = (
    Step("dns", name_is_known, "check the spelling of the address, and this machine's DNS", vital=True),
    Step("tcp", port_is_open, "check address and port, and that the server runs", vital=True),
    Step("login", login_succeeds, "check port, user, password and name of the database: `.env` holds them", vital=True),
    Step("tls", way_is_private, "look at the log of PostgreSQL"),
    Step("round trip", round_trip_is_short, "look at the network between"),
    Step("rights", role_is_modest, "look at the log of PostgreSQL"),
    Step("migrations", tables_are_current, "run `howl migrate`"),
    Step("budget", budget_is_left, "run `howl burst budget`"),
    Step("record", credentials_are_within_bounds, "look at the log of PostgreSQL"),
    Step("chords", chords_come_to_an_end, "look at the log of PostgreSQL"),
    Step("files", files_are_there, "look at the log of PostgreSQL"),
    Step("queues", queues_are_served, "look at the log of PostgreSQL"),
    Step("version", version_is_told, "look at the log of PostgreSQL"),
)
