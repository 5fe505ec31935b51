"""What `howl init` made, at work: a worker that knows one string, and everybody who is refused."""

import asyncio
import datetime
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import psycopg
import pytest
import redis
from kombu.exceptions import OperationalError
from nats.errors import Error as NatsError
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text

from howl.bursts import budget
from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import explain, postgres, tls
from howl.connections.redis import redis_client
from howl.embedded.server import free_port
from howl.embedded.stack import Stack
from howl.join import decode, encode
from howl.provision.authority import Pair, issue, make_authority
from howl.provision.state import OWNER, READER, SERVER
from howl.server.recorder.outcome_streams import OutcomeStream
from tests.helpers.servers import COMPOSE, HOST, Listener, Server, howl, psql, ready, scalar
from tests.helpers.support import Process, eventually, run_program
from tests.provision.conftest import DATABASE, database_url, superuser_url

pytestmark = pytest.mark.servers

Start = Callable[..., Process]
Client = Callable[[Settings], None]
#: How libraries say that a server was refused, or refused them.
REFUSALS = (redis.RedisError, NatsError, OperationalError, OSError, TimeoutError)


def submit(server: Server, *arguments: str) -> str:
    """What `howl submit … --wait` prints, in the server's folder."""
    argv = [str(Path(sys.executable).with_name("howl")), "submit", *arguments, "--wait", "--timeout", "60s"]
    env = server.env(HOWL_TASK_MODULES="tests.tasks")
    answer = run_program(argv, env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.strip()


def known(server: Server, name: str = "worker") -> Settings:
    return load_settings(join=server.join(name))


# --- who is let in --------------------------------------------------------------------------------------------------


def test_a_worker_that_knows_one_string_runs_a_task_and_is_seen(
    server: Server, howl_server: Process, start: Start, stack: Stack
):
    ready(start("worker", "--name", "far-away", env=server.worker_env()))
    assert submit(server, "tests.add", "--args", "[2, 3]") == "5"
    url = database_url(stack, server)
    assert eventually(lambda: scalar(url, "SELECT status FROM workers WHERE worker_id = 'far-away'")) == "active"


def test_a_worker_started_by_the_celery_command_needs_no_more(server: Server, howl_server: Process, start: Start):
    arguments = ["-A", "howl", "worker", "-n", "plain", "--pool", "solo", "--without-gossip", "--without-mingle"]
    ready(start(*arguments, "--loglevel", "INFO", program="celery", env=server.worker_env()))
    assert submit(server, "tests.echo", "--args", '["hello"]') == "hello"


def test_what_a_workers_tasks_do_is_told_over_tls_by_one_that_may_broadcast_nothing(
    server: Server, howl_server: Process, start: Start
):
    worker = ready(start("worker", "--name", "talkative", "--concurrency", "1", env=server.worker_env()))
    assert asyncio.run(_told_of_one_task(server)) == ["task-received", "task-started", "task-succeeded"]
    assert not re.search("NOPERM|ermission|Traceback", worker.output)


async def _told_of_one_task(server: Server) -> list[str]:
    """What somebody with the server's own rights hears on NATS while the worker does a task."""
    url = f"tls://{SERVER}:{server.folder.existing().passwords[SERVER]}@{HOST}:{server.nats_port}"
    settings = load_settings(nats_url=url, ca_file=server.folder.ca)
    client = await nats.connect(url, connect_timeout=5, **tls.nats_options(settings))
    try:
        heard = await client.subscribe("howl.events.worker")
        await client.flush()
        await asyncio.to_thread(submit, server, "tests.noop")
        kinds: list[str] = []
        while kinds[-1:] != ["task-succeeded"]:
            events = json.loads((await heard.next_msg(timeout=30)).data)
            kinds += [event["type"] for event in events if event["type"].startswith("task-")]
    finally:
        await client.close()
    return kinds


def test_the_health_check_of_the_server_holds(server: Server, howl_server: Process):
    command = [sys.executable, *COMPOSE["services"]["server"]["healthcheck"]["test"][2:]]
    eventually(lambda: subprocess.run(command, env=server.env(), timeout=30, check=False).returncode == 0)


def test_the_health_check_of_redis_holds(server: Server):
    check = COMPOSE["services"]["redis"]["healthcheck"]["test"][1].replace("$$", "$")
    check = check.replace("/etc/howl", str(server.path / "redis")).replace("--user", f"-p {server.redis_port} --user")
    assert subprocess.run(["sh", "-c", check], timeout=30, check=False).returncode == 0


def test_a_worker_has_a_pulse_while_its_loop_moves(server: Server, start: Start, tmp_path: Path):
    pulse = tmp_path / "pulse"
    env = server.worker_env(server.join("permanent"), HOWL_PULSE_FILE=str(pulse), HOWL_HEARTBEAT_INTERVAL="0.2")
    worker = ready(start("worker", "--name", "permanent", "--pool", "solo", env=env))
    pulse.unlink()
    eventually(pulse.exists)
    worker.signal(signal.SIGSTOP)
    pulse.unlink()
    time.sleep(1)
    assert not pulse.exists()


def test_queues_of_a_credential_are_those_its_worker_takes_from(server: Server, start: Start):
    env = server.worker_env(changed(server, queues=("web", "screens")))
    output = ready(start("worker", "--name", "picky", "--pool", "solo", env=env)).output
    assert ".> web " in output
    assert ".> screens " in output
    assert ".> celery " not in output


def test_flower_reads_queues_through_the_same_check(server: Server):
    statement = (
        "import asyncio, howl; from flower.utils.broker import Broker; c = howl.app.conf; "
        "b = Broker(c.broker_url, broker_options=c.broker_transport_options, broker_use_ssl=c.broker_use_ssl); "
        "print(asyncio.run(b.queues(['celery'])))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", statement], env=server.env(), capture_output=True, text=True, timeout=60, check=False
    )
    assert "'name': 'celery'" in answer.stdout, answer.stderr


# --- who is not -----------------------------------------------------------------------------------------------------


SPOILED = {
    "expired": "its certificate has expired",
    "another host's": "its certificate is for other names than this address",
    "another authority's": "its certificate is not signed by the authority known here",
}


@pytest.fixture(scope="module")
def spoiled(server: Server) -> dict[str, tuple[int, int]]:
    """Ports of a Redis and a NATS by what is wrong with their certificate."""
    folder = server.folder.out / "spoiled"
    folder.mkdir()
    ours = Pair(*((server.path / "authority" / f"ca.{end}").read_text() for end in ("crt", "key")))
    pairs = {
        "expired": issue(ours, [HOST], datetime.timedelta(days=-1)),
        "another host's": issue(ours, ["other.server"]),
        "another authority's": issue(make_authority(HOST), [HOST]),
    }
    return {kind: _start_with(server, pair, folder / str(at)) for at, (kind, pair) in enumerate(pairs.items())}


def _start_with(server: Server, pair: Pair, stem: Path) -> tuple[int, int]:
    stem.with_suffix(".crt").write_text(pair.certificate)
    stem.with_suffix(".key").write_text(pair.key)
    ports = free_port(), free_port()
    server.start_redis(ports[0], stem)
    server.start_nats(ports[1], stem)
    return ports


def changed(server: Server, **changes: Any) -> str:
    return encode(replace(decode(server.join()), **changes))


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("program", ["howl", "celery"])
def test_a_worker_refuses_a_bad_certificate_in_one_sentence(
    server: Server, spoiled: dict[str, tuple[int, int]], start: Start, kind: str, program: str
):
    join = changed(server, redis_port=spoiled[kind][0])
    assert SPOILED[kind] in refusal(start, program, server.worker_env(join), server)


@pytest.mark.parametrize("program", ["howl", "celery"])
def test_a_worker_with_a_wrong_password_is_told_so_in_one_sentence(server: Server, start: Start, program: str):
    env = server.worker_env(changed(server, password="wrong"))
    assert "user name or password is wrong" in refusal(start, program, env, server)


def refusal(start: Start, program: str, env: dict[str, str], server: Server) -> str:
    """All that a worker said before it ended with status 1: one line, no secret."""
    arguments = ["worker", "--name", "w1"] if program == "howl" else ["-A", "howl", "worker", "-n", "w1"]
    # Celery warns root of being root.
    process = start(*arguments, program=program, env=env | {"PYTHONWARNINGS": "ignore"})
    assert process.wait() == 1, process.output
    lines = process.output.strip().splitlines()
    assert len(lines) == 1, process.output
    assert re.match(r"Error: Redis at 127\.0\.0\.1:\d+ cannot be used: ", lines[0])
    assert not [secret for secret in server.folder.existing().passwords.values() if secret in lines[0]]
    return lines[0]


def redis_py(settings: Settings) -> None:
    with redis_client(settings, timeout=5) as client:
        client.ping()


def celery_s_own(settings: Settings) -> None:
    with create_app(settings).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)


def the_recorder_s(settings: Settings) -> None:
    async def ask() -> None:
        stream = OutcomeStream(settings)
        try:
            await stream.redis.ping()
        finally:
            await stream.redis.aclose()

    asyncio.run(ask())


def nats_py(settings: Settings) -> None:
    async def ask() -> None:
        async def failed(_: Exception) -> None: ...

        options = tls.nats_options(settings)
        client = await nats.connect(
            settings.nats(), allow_reconnect=False, connect_timeout=5, error_cb=failed, **options
        )
        await client.close()

    asyncio.run(ask())


CLIENTS = (redis_py, celery_s_own, the_recorder_s, nats_py)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_accepts_a_good_certificate(server: Server, client: Client):
    client(known(server))


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("client", CLIENTS)
def test_no_client_accepts_a_bad_certificate(
    server: Server, spoiled: dict[str, tuple[int, int]], client: Client, kind: str
):
    redis_port, nats_port = spoiled[kind]
    settings = load_settings(join=changed(server, redis_port=redis_port, nats_port=nats_port))
    with pytest.raises(REFUSALS) as caught:
        client(settings)
    assert SPOILED[kind] in explain.reason(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
def test_an_address_alone_does_not_switch_checking_off(server: Server, client: Client):
    """kombu by itself checks nothing for a bare rediss://."""
    good = known(server)
    settings = load_settings(redis_url=good.redis(), nats_url=good.nats())
    with pytest.raises(REFUSALS) as caught:
        client(settings)
    assert "not signed by the authority known here" in explain.reason(caught.value)


def test_no_password_is_sent_to_a_nats_that_speaks_no_tls(server: Server, stack: Stack):
    """Nor to somebody in between who says that none is needed."""
    heard = bytearray()
    with Listener(b'INFO {"server_id":"x","version":"2.0.0","max_payload":1048576}\r\n', heard) as port:
        with pytest.raises(REFUSALS):
            nats_py(load_settings(join=changed(server, nats_port=port)))
    assert heard[:1] == b"\x16"  # TLS's first word: a handshake
    assert b"CONNECT" not in heard


def test_nobody_gets_in_without_a_name(server: Server):
    settings = known(server)
    anonymous = load_settings(redis_url=re.sub("//.*@", "//", settings.redis()), ca_file=server.folder.ca)
    with redis_client(anonymous) as client:
        with pytest.raises(redis.AuthenticationError):
            client.execute_command("GET", "howl:x")


def test_redis_speaks_nothing_but_tls(server: Server):
    with pytest.raises(redis.ConnectionError):
        redis.Redis(host=HOST, port=server.redis_port, socket_timeout=5, retry=Retry(NoBackoff(), 0)).ping()


# --- rotating -------------------------------------------------------------------------------------------------------


def test_a_rotated_credential_s_old_password_is_refused_and_the_new_one_works(server: Server):
    before = known(server)
    redis_py(before)
    said = howl("init", "rotate", "worker", "--out", server.folder.out)
    assert "Redis: has the new users." in said
    assert "NATS: has the new users." in said
    for client in (redis_py, nats_py):
        with pytest.raises(REFUSALS) as caught:
            client(before)
        assert explain.is_refused_login(caught.value)
        client(known(server))


def test_rotating_one_credential_leaves_the_others_as_they_were(server: Server):
    others = [known(server, name) for name in ("server", "permanent")]
    howl("init", "rotate", "worker", "--out", server.folder.out)
    for settings in others:
        redis_py(settings)
        nats_py(settings)


def test_a_connection_of_the_old_credential_is_ended(server: Server):
    with redis_client(known(server)) as client:
        connection = client.connection_pool.make_connection()
        connection.connect()
        howl("init", "rotate", "worker", "--out", server.folder.out)
        with pytest.raises(redis.ConnectionError):
            connection.read_response(timeout=5)


def test_a_worker_that_works_goes_on_while_another_credential_is_rotated(
    server: Server, howl_server: Process, start: Start
):
    ready(start("worker", "--name", "steady", "--pool", "solo", env=server.worker_env(server.join("permanent"))))
    howl("init", "rotate", "worker", "--out", server.folder.out)
    assert submit(server, "tests.add", "--args", "[1, 1]") == "2"


def test_the_credential_that_tells_of_others_can_be_rotated_too(server: Server):
    for _ in range(2):
        said = howl("init", "rotate", "operator", "--out", server.folder.out)
        assert "Redis: has the new users." in said
        assert "NATS: has the new users." in said


def test_a_string_for_some_queues_is_a_credential_of_its_own(server: Server):
    string = howl("init", "join", "--queues", "web,screens", "--out", server.folder.out).splitlines()[-1]
    assert decode(string).user == "worker-screens-web"
    assert decode(string).queues == ("web", "screens")
    settings = load_settings(join=string)
    redis_py(settings)
    nats_py(settings)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def test_the_owner_of_the_tables_is_no_superuser(server: Server, stack: Stack):
    url = database_url(stack, server)
    assert scalar(url, "SELECT current_user") == OWNER
    assert scalar(url, "SELECT tableowner FROM pg_tables WHERE tablename = 'tasks'") == OWNER
    may = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
    assert scalar(url, f"SELECT {may} FROM pg_roles WHERE rolname = current_user") is False  # noqa: S608  # ours


def test_the_reader_reads_every_table_and_changes_none(server: Server, stack: Stack):
    url = database_url(stack, server, READER)
    tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    assert scalar(url, tables) > 0
    assert scalar(url, f"{tables} AND NOT has_table_privilege(oid, 'SELECT')") == 0
    changing = "'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'"
    assert scalar(url, f"{tables} AND has_table_privilege(oid, {changing})") == 0
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        scalar(url, "DELETE FROM tasks")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        scalar(url, "BEGIN READ WRITE; CREATE TABLE mine (x int)")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(hashtext('howl.budget'))", "SELECT pg_try_advisory_lock(1, 2)",
        "SELECT pg_advisory_xact_lock(hashtext('howl.migrate'))", "SELECT pg_try_advisory_xact_lock_shared(1)",
        "LOCK TABLE bursts IN SHARE UPDATE EXCLUSIVE MODE", "LOCK TABLE tasks IN ROW SHARE MODE",
        "SELECT 1 FROM tasks FOR UPDATE", "SELECT 1 FROM tasks FOR KEY SHARE", "CREATE TEMPORARY TABLE mine (x int)",
        "SELECT lo_creat(-1)", "SELECT lo_from_bytea(0, 'x')", "SET temp_file_limit = -1",
    ],
)  # fmt: skip
def test_the_reader_locks_nobody_out_and_fills_no_disk(server: Server, stack: Stack, statement: str):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        scalar(database_url(stack, server, READER), f"BEGIN READ WRITE; {statement}")


def test_bursts_are_counted_whatever_a_reader_holds(server: Server, stack: Stack):
    with psycopg.connect(database_url(stack, server, READER)) as reader:
        reader.execute("LOCK TABLE bursts, workers, tasks IN ACCESS SHARE MODE")
        with postgres.session(database_url(stack, server)) as opened:
            opened.execute(text("SET LOCAL lock_timeout = '5s'"))
            assert budget.look(opened, load_settings(home=server.folder.out))["workers"] == 0


def test_a_readers_forgotten_transaction_and_its_connections_end(server: Server, stack: Stack):
    url = database_url(stack, server, READER)
    for name, value in (("statement_timeout", "1min"), ("idle_in_transaction_session_timeout", "1min"),
                        ("transaction_timeout", "5min"), ("temp_file_limit", "1GB")):  # fmt: skip
        assert scalar(url, f"SHOW {name}") == value
    with ExitStack() as opened, pytest.raises(psycopg.OperationalError, match="too many connections for role"):
        _connect(url, 21, opened)


def _connect(url: str, times: int, opened: ExitStack) -> None:
    for _ in range(times):
        opened.enter_context(psycopg.connect(url))


def test_the_roles_can_be_made_again_and_a_rotated_password_then_counts(server: Server, stack: Stack):
    before, script = database_url(stack, server, READER), server.path / "postgres" / "init" / "roles.sql"
    psql(superuser_url(stack, DATABASE), script)
    assert scalar(before, "SELECT 1") == 1
    assert "roles.sql" in howl("init", "rotate", "howl_reader", "--out", server.folder.out)
    psql(superuser_url(stack, DATABASE), script)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        scalar(before, "SELECT 1")
    assert scalar(database_url(stack, server, READER), "SELECT 1") == 1


def test_the_script_of_the_roles_holds_no_password(server: Server):
    script = (server.path / "postgres" / "init" / "roles.sql").read_text()
    assert not [secret for secret in server.folder.existing().passwords.values() if secret in script]


def test_a_credential_made_while_nats_runs_is_heard_by_the_server_and_so_are_the_others(
    server: Server, howl_server: Process
):
    howl("init", "join", "--name", "late", "--queues", "late", "--out", server.path.parent)
    for name in ("late", "worker"):
        eventually(lambda who=name: asyncio.run(_is_taken(server, who)))


async def _is_taken(server: Server, name: str) -> bool:
    url = f"tls://{name}:{server.folder.existing().passwords[name]}@{HOST}:{server.nats_port}"
    options = tls.nats_options(load_settings(nats_url=url, ca_file=server.folder.ca))
    client = await nats.connect(url, connect_timeout=5, inbox_prefix=f"howl.inbox.{name}", **options)
    try:
        return b'"howl-events"' in (await client.request(f"howl.events.{name}", b"[]", timeout=5)).data
    except nats.errors.NoRespondersError:
        return False
    finally:
        await client.close()
