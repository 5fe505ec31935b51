"""Redis, NATS and PostgreSQL, each on a disk that is full for a while: nothing recorded or accepted is lost."""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select

from howl.connections import postgres as db
from howl.embedded.cluster import SUPERUSER
from howl.embedded.postgres import DATABASE, Postgres
from howl.errors import DatabaseUnavailable, EmbeddedServerError, QueueUnavailable
from howl.files import Passwords
from howl.models import Task
from howl.provision.state import OWNER
from howl.server import migrate
from tests.helpers.person import Person
from tests.helpers.servers import HOST, Server, psql, ready, serving
from tests.helpers.support import Process, eventually

pytestmark = pytest.mark.servers

Start = Callable[..., Process]
StartWorker = Callable[[str], Process]
#: Megabytes of each disk; PostgreSQL's has a copy of the program too, for an account that may not see ours.
SIZES = {"redis": 8, "nats": 8, "postgres": 256}
#: Seconds after which who is silent shall be lost, and of a lease: shorter than a disk is full here.
LOST_AFTER, LEASE = 3.0, 6.0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mounted at `folder`; what runs on it must have ended before it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode=0711"
    argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {answer.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], timeout=30, check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte more fits on the disk."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for chunk in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(chunk))
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def home() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="howl-full-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_server(home: Path) -> Iterator[Server]:
    """What `howl init` made, Redis and NATS on a small disk each."""
    made = Server(home)
    with small_disk(made.data("redis"), SIZES["redis"]), small_disk(made.data("nats"), SIZES["nats"]):
        try:
            made.start_redis()
            made.start_nats()
            yield made
        finally:
            made.stop()


@pytest.fixture
def small_postgres(home: Path, small_server: Server) -> Iterator[Postgres]:
    """On another one, with the roles of the same `howl init`."""
    folder = home / "postgres"
    with small_disk(folder, SIZES["postgres"]):
        made = Postgres(folder, Passwords(home / "postgres-passwords.json"))
        try:
            made.start()
            psql(superuser_url(made), small_server.path / "postgres" / "init" / "roles.sql")
            migrate.upgrade(owner_url(small_server, made))
            yield made
        finally:
            db.engine(owner_url(small_server, made)).dispose()
            made.stop()


def superuser_url(postgres: Postgres) -> str:
    return f"postgresql://{SUPERUSER}:{postgres.passwords[SUPERUSER]}@{HOST}:{postgres.port}/{DATABASE}"


def owner_url(server: Server, postgres: Postgres) -> str:
    return f"postgresql://{OWNER}:{server.folder.existing().passwords[OWNER]}@{HOST}:{postgres.port}/{DATABASE}"


@pytest.fixture
def howl_server(small_server: Server, small_postgres: Postgres, start: Start) -> Process:
    settings = {"HOWL_LOST_AFTER": str(LOST_AFTER), "HOWL_LEASE": str(LEASE)}
    return serving(start("server", env=small_server.env(POSTGRES_PORT=str(small_postgres.port), **settings)))


@pytest.fixture
def person(small_server: Server, small_postgres: Postgres) -> Iterator[Person]:
    somebody = Person(small_server, owner_url(small_server, small_postgres))
    yield somebody
    somebody.app.close()


@pytest.fixture
def start_worker(small_server: Server, start: Start) -> StartWorker:
    env = small_server.worker_env(HOWL_HEARTBEAT_INTERVAL="0.5", HOWL_LEASE=str(LEASE))
    return lambda name: ready(start("worker", "--name", name, "--pool", "solo", env=env))


def noise(size: int) -> str:
    """Text that does not shrink when it is compressed."""
    return secrets.token_hex(size // 2)


def all_succeeded(person: Person) -> bool:
    with db.session(person.settings.database()) as opened:
        return {status for (status,) in opened.execute(select(Task.status).distinct())} == {"succeeded"}


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_redis_on_a_full_disk_takes_nothing_and_goes_on_when_there_is_room(
    small_server: Server, howl_server: Process, person: Person, start_worker: StartWorker
):
    worker = start_worker("w1")
    running = person.submit("tests.sleep", LEASE + 2)  # it ends while Redis takes nothing
    eventually(lambda: person.status(running) == "started")
    with full(small_server.data("redis")):
        assert "the disk it writes to is full" in refusal_to_push(person)
        for part in ("recorder", "keeper"):
            eventually(lambda part=part: f"The {part} stopped: the disk it writes to is full" in howl_server.output)
        eventually(lambda: "Redis does not take a turn (the disk it writes to is full" in worker.output)
        time.sleep(LEASE + 1)
    person.waits_for(running)
    eventually(lambda: all_succeeded(person))  # what was recorded and could not be pushed included
    assert "back on their queues" not in howl_server.output  # nobody was taken for dead


def refusal_to_push(person: Person) -> str:
    """What a task's submitter is told, once the last page of the file is full."""

    def told() -> str | None:
        try:
            person.submit("tests.echo", noise(3000))
        except QueueUnavailable as error:
            return error.message
        return None

    return str(eventually(told))


# --- NATS -----------------------------------------------------------------------------------------------------------


def test_nats_on_a_full_disk_costs_heartbeats_alone_and_keeps_them_again_when_there_is_room(
    small_server: Server, howl_server: Process, person: Person, start_worker: StartWorker
):
    start_worker("w1")
    eventually(lambda: person.worker("w1") == "active")
    with full(small_server.data("nats")):
        eventually(lambda: "The bridge stopped: NATS keeps no events" in howl_server.output)
        start_worker("w2")
        person.sees_work_done()
        time.sleep(2 * LOST_AFTER)
        assert person.worker("w1") == "active"
    eventually(lambda: person.worker("w2") == "active")
    assert person.worker("w1") == "active"
    assert "has been silent" not in howl_server.output, howl_server.output


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def test_postgresql_on_a_full_disk_is_waited_for_and_told_everything_when_there_is_room(
    small_postgres: Postgres, howl_server: Process, person: Person, start_worker: StartWorker
):
    texts = [noise(200_000 + at) for at in range(4)]
    tasks = [person.submit("tests.echo", text) for text in texts]
    with full(small_postgres.home):
        start_worker("w1")
        eventually(lambda: "cannot write, for its disk is full" in howl_server.output)
        with pytest.raises(DatabaseUnavailable, match="its disk is full"):
            person.submit("tests.echo", noise(500_000))
    person.waits_for(*tasks)
    assert [person.result(task_id) for task_id in tasks] == texts
    assert person.recorded() == len(tasks)  # and nothing of what was refused


def test_a_postgresql_that_a_full_disk_has_ended_is_waited_for(
    small_postgres: Postgres, howl_server: Process, person: Person, start_worker: StartWorker
):
    tasks = [person.submit("tests.add", at, 1) for at in range(20)]
    with full(small_postgres.home):
        fill_the_log(small_postgres)
        start_worker("w1")
        eventually(lambda: "PostgreSQL at 127.0.0.1" in howl_server.output)
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            person.submit("tests.add", 1, 1)
        with pytest.raises(EmbeddedServerError):
            small_postgres.start()  # as Docker does again and again
    small_postgres.start()
    person.waits_for(*tasks)
    person.sees_work_done()


def fill_the_log(postgres: Postgres) -> None:
    """PostgreSQL's write-ahead log; without it, it ends."""
    with suppress(psycopg.OperationalError), psycopg.connect(superuser_url(postgres), autocommit=True) as connection:
        for _ in range(64):
            connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1048576))")
    eventually(lambda: has_ended(postgres))


def has_ended(postgres: Postgres) -> bool:
    try:
        postgres.check()
    except EmbeddedServerError:
        return True
    return False
