"""PostgreSQL as databases really are: with settings of their own, poolers, limits, and links that stand still."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.orm import Session

from howl.cli import main
from howl.config import Settings
from howl.connections import postgres
from howl.connections.redis import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from howl.doctor.examine import run as examine
from howl.doctor.finding import Verdict
from howl.embedded.server import free_port
from howl.embedded.stack import Stack
from howl.errors import DatabaseUnavailable
from howl.mcp_shim import tools
from howl.models import Task
from howl.queries import statistics
from howl.queries.results import Reader
from howl.submission import TaskRequest, submit
from tests.helpers.roads import LOOK, Road
from tests.helpers.support import as_an_ordinary_user, listens, optional_program, taken_away
from tests.mcp_shim.test_tools import answer, call, refusal

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("patient_doctor")]

#: What databases and roles set for their clients (supabase 32689, pg_cron 270, node-postgres 557, psycopg 571).
ODD = {
    "datestyle": "German", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu", "extra_float_digits": "-10",
    "bytea_output": "escape", "standard_conforming_strings": "off", "client_encoding": "LATIN1",
    "search_path": "pg_catalog", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on", "synchronous_commit": "off", "array_nulls": "off",
    "transform_null_equals": "on", "client_min_messages": "debug5", "row_security": "off", "jit": "on",
    "plan_cache_mode": "force_generic_plan", "quote_all_identifiers": "on", "lc_messages": "C",
    "application_name": "somebody else's", "escape_string_warning": "on", "work_mem": "64kB",
    "default_toast_compression": "pglz", "session_replication_role": "local", "xmloption": "document",
}  # fmt: skip
#: Limits of time, within which a busy machine lets somebody in.
LIMIT = 0.6
LIMITED = dict.fromkeys(
    ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
     "transaction_timeout"), f"{LIMIT * 1000:.0f}ms",
)  # fmt: skip


@pytest.fixture
def superuser(stack: Stack) -> Iterator[psycopg.Connection]:
    with stack.postgres._connect_as_superuser() as connection:
        connection.autocommit = True
        yield connection


@contextmanager
def set_for_all(settings: Settings, superuser: psycopg.Connection, **odd: str) -> Iterator[None]:
    """A database's settings for new connections of its clients, and none of HOWL's before."""
    url = settings.database()
    database = sql.Identifier(urlsplit(url).path.strip("/"))
    for name, value in odd.items():
        # A list of words is no word with commas.
        given = sql.SQL(value) if name in ("datestyle", "search_path") else sql.Literal(value)
        superuser.execute(
            sql.SQL("ALTER DATABASE {} SET {} TO {}").format(database, sql.Identifier(name), given), prepare=False
        )
    postgres.engine(url).dispose()
    try:
        yield
    finally:
        superuser.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(database))


def known(superuser: psycopg.Connection, odd: dict[str, str]) -> dict[str, str]:
    """Those that this PostgreSQL has."""
    names = {row[0].lower() for row in superuser.execute("SELECT name FROM pg_settings")}
    return {name: value for name, value in odd.items() if name in names}


def works(settings: Settings, app: Celery, lasts: float = 0.0) -> None:
    """A submission as it goes, in a transaction that takes so many seconds, and what is read of it."""
    with postgres.session(settings.database()) as session:
        session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": lasts})
        time.sleep(lasts)
        task_id = submit(TaskRequest(name="tests.add", args=[1, 2], description="ö ♥ \\ '"), session, app)
        assert session.get_one(Task, task_id, populate_existing=True).args == [1, 2]
    with postgres.session(settings.database()) as session:
        row = session.get_one(Task, task_id)
        assert row.queued_at.utcoffset() == timedelta(0)
        assert row.description == "ö ♥ \\ '"
        floats, pause, raw = session.execute(
            text("SELECT 0.1::float8 + 0.2, interval '1 day 2 hours', '\\x00ff'::bytea")
        ).one()
        assert (floats, pause, bytes(raw)) == (0.1 + 0.2, timedelta(days=1, hours=2), b"\x00\xff")
        assert session.scalar(text("SHOW synchronous_commit")) == "on"
    assert Reader(settings.database()).task_meta(task_id)["status"] == "PENDING"


def test_a_database_may_set_for_its_clients_what_it_likes(
    settings: Settings, app: Celery, superuser: psycopg.Connection, subtests: pytest.Subtests
) -> None:
    for name, value in known(superuser, ODD).items():
        with subtests.test(name), set_for_all(settings, superuser, **{name: value}):
            works(settings, app)


def test_so_it_may_set_all_of_it_at_once_for_the_doctor_too(
    settings: Settings, app: Celery, superuser: psycopg.Connection
) -> None:
    with set_for_all(settings, superuser, **known(superuser, ODD | LIMITED)):
        works(settings, app, lasts=1.2 * LIMIT)
        found = {each.check: each.verdict for each in examine(settings) if each.server == "postgresql"}
    assert found["migrations"] is Verdict.OK


def test_limits_that_leave_a_minute_hold_as_they_are_set(settings: Settings, superuser: psycopg.Connection) -> None:
    with set_for_all(settings, superuser, statement_timeout="90s"):
        with postgres.session(settings.database()) as session:
            assert session.scalar(text("SHOW statement_timeout")) == "90s"


def said(*statements: str) -> Callable[[Session], Any]:
    return lambda session: [session.execute(text(statement)) for statement in statements]


def _idle_for_too_long(session: Session) -> None:
    session.execute(text("SET idle_in_transaction_session_timeout = '50ms'"))
    time.sleep(0.3)
    session.execute(text("SELECT 1"))


def _goes_on_without(session: Session) -> None:
    with pytest.raises(Exception, match="terminating"):
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    session.execute(text("SELECT 1"))


def _after_an_error(session: Session) -> None:
    with pytest.raises(Exception, match="division"):
        session.execute(text("SELECT 1 / 0"))
    session.execute(text("SELECT 1"))


#: What databases do to their clients, and what is said of it.
DONE: dict[str, tuple[Callable[[Session], Any], str]] = {
    "a backend ended": (said("SELECT pg_terminate_backend(pg_backend_pid())"), "does not answer"),
    "a backend ended, and somebody who goes on": (_goes_on_without, "in the middle of a transaction"),
    "a statement cancelled": (said("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)"), "canceling statement"),
    "a statement that takes too long": (
        said("SET statement_timeout = '20ms'", "SELECT pg_sleep(5)"), "statement timeout",
    ),
    "a transaction idle for too long": (_idle_for_too_long, "does not answer"),
    "a transaction that failed": (_after_an_error, "transaction is aborted"),
    "a standby": (said("SET TRANSACTION READ ONLY", "DELETE FROM tasks"), "takes no writes .* Name the primary"),
    "somebody else's tables": (said("SELECT * FROM pg_authid"), "use the role that owns"),
    "tables that are gone": (said("SELECT * FROM not_there"), "run `howl migrate`"),
}  # fmt: skip


@pytest.mark.parametrize("name", DONE)
def test_what_a_database_does_to_its_client_is_a_sentence_and_costs_one_call(name: str, settings: Settings) -> None:
    act, words = DONE[name]
    with pytest.raises(DatabaseUnavailable, match=words), postgres.session(settings.database()) as session:
        act(session)
    with postgres.session(settings.database()) as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_database_that_lets_nobody_in_says_why_and_then_does(
    settings: Settings, superuser: psycopg.Connection
) -> None:
    url = settings.database()
    name = sql.Identifier(urlsplit(url).path.strip("/"))
    superuser.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0").format(name))
    postgres.engine(url).dispose()
    with pytest.raises(DatabaseUnavailable, match="too many connections"), postgres.session(url) as session:
        session.scalar(text("SELECT 1"))
    superuser.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(name))
    with postgres.session(url) as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_postgresql_that_was_started_again_costs_no_call(settings: Settings, stack: Stack) -> None:
    with postgres.session(settings.database()) as session:
        session.scalar(text("SELECT 1"))
    with taken_away(stack.postgres):
        pass
    with postgres.session(settings.database()) as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_prepared_statements_that_are_lost_cost_one_call_and_are_made_no_more(settings: Settings) -> None:
    url = settings.database()

    def ask(times: int) -> None:
        with postgres.session(url) as session:
            for _ in range(times):
                session.execute(text("SELECT count(*) FROM tasks WHERE task_id = :task_id"), {"task_id": "x"})

    ask(8)
    with postgres.session(url) as session:
        session.execute(text("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"))  # psycopg does not see it like that
    with pytest.raises(DatabaseUnavailable, match="prepared statement"):
        ask(1)
    ask(8)
    with postgres.session(url) as session:
        assert session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0


# --- a link that stands still --------------------------------------------------------------------------------------


@pytest.fixture
def road(settings: Settings) -> Iterator[Road]:
    with Road(urlsplit(settings.database()).port or 5432) as opened:
        yield opened


@pytest.fixture
def through(road: Road, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The database's address by that road, where answers have half a second."""
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT", 2)
    url = settings.database().replace(f":{urlsplit(settings.database()).port}/", f":{road.port}/")
    with postgres.patient(0.5):
        yield url
    postgres.engine(url).dispose()


def dies_in_the_middle(road: Road, session: Session) -> None:
    session.scalar(text("SELECT 1"))
    road.dies()
    time.sleep(2 * LOOK)
    session.scalar(text("SELECT 1"))


def test_a_link_that_stands_still_is_told_of_in_words_and_the_next_call_goes_another_way(
    road: Road, through: str
) -> None:
    with postgres.session(through) as session:
        assert session.scalar(text("SELECT 1")) == 1
    road.stands_still()
    with pytest.raises(DatabaseUnavailable, match=r"no answer|timeout"), postgres.session(through) as session:
        session.scalar(text("SELECT 1"))
    road.goes_on()
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.5 s"), postgres.session(through) as session:
        dies_in_the_middle(road, session)
    with postgres.session(through) as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_command_and_a_tool_say_so_and_the_next_ones_work(
    road: Road, through: str, settings: Settings, env: dict[str, str]
) -> None:
    told = settings.model_copy(update={"database_url": through})
    shim = tools.create_server(lambda: told)
    assert answer(call(shim, "list_tasks"))["tasks"] == []
    road.stands_still()
    assert "does not answer" in refusal(call(shim, "list_tasks"))
    line = CliRunner().invoke(main, ["tasks", "list"], env=env | {"HOWL_DATABASE_URL": through})
    assert (line.exit_code, line.output.count("\n")) == (1, 1)
    assert "does not answer" in line.output
    road.goes_on()
    assert answer(call(shim, "list_tasks"))["tasks"] == []
    assert CliRunner().invoke(main, ["tasks", "list"], env=env | {"HOWL_DATABASE_URL": through}).exit_code == 0


def test_an_answer_that_takes_too_long_is_given_up_but_where_much_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0.3 s"):
        with postgres.patient(0.3), postgres.session(settings.database()) as session:
            session.execute(text("SELECT pg_sleep(20)"))
    slow = {"overview": lambda session, *_: list(session.execute(text("SELECT pg_sleep(0.6)")))}
    monkeypatch.setattr(statistics, "QUESTIONS", slow)
    with postgres.patient(0.3), postgres.session(settings.database()) as session:
        assert len(statistics.analytics(session, "overview")["rows"]) == 1


def test_the_limits_together_are_below_what_a_person_waits() -> None:
    assert postgres.ANSWER_TIMEOUT + postgres.CONNECT_TIMEOUT < 20
    assert ANSWER_TIMEOUT + CONNECT_TIMEOUT < 20


# --- a pooler between ----------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """The database behind PgBouncer in transaction mode, with fewer server processes than clients have connections."""
    program, parts, port = optional_program("pgbouncer"), urlsplit(settings.database()), free_port()
    (tmp_path / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
    (tmp_path / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port} user={parts.username} password={parts.password}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        f"auth_file = {tmp_path / 'users.txt'}\ndefault_pool_size = 2\nserver_reset_query =\n"
    )
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        command = [*as_an_ordinary_user(), program, str(tmp_path / "pgbouncer.ini")]
        running = subprocess.Popen(command, stdout=log, stderr=log)
    url = settings.database().replace(f":{parts.port}/", f":{port}/")
    try:
        listens(port)
        yield url
    finally:
        postgres.engine(url).dispose()
        running.send_signal(signal.SIGINT)
        running.wait(30)


def test_all_goes_through_a_pooler_in_transaction_mode(
    pooled: str, settings: Settings, app: Celery, superuser: psycopg.Connection
) -> None:
    behind = settings.model_copy(update={"database_url": pooled})

    def repeat(_: Any) -> None:
        for _ in range(8):
            works(behind, app)

    with set_for_all(settings, superuser, datestyle="German", search_path="pg_catalog"):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(repeat, range(4)))
        found = {each.check: each.verdict for each in examine(behind) if each.server == "postgresql"}
    assert found["migrations"] is Verdict.OK


def test_a_server_works_behind_a_pooler(
    pooled: str, env: dict[str, str], start: Callable[..., Any], start_worker: Callable[..., Any], app: Celery
) -> None:
    start("server", env=env | {"HOWL_DATABASE_URL": pooled})
    start_worker("w1")
    results = [app.send_task("tests.add", (number, 1)) for number in range(30)]
    assert [each.get(timeout=45) for each in results] == [number + 1 for number in range(30)]
