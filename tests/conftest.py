"""Real servers for every test: one stack a process; a namespace (database, key and subject prefix) a test."""

import asyncio
import contextlib
import fcntl
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

import nats
import psycopg
import pytest
from celery import Celery
from nats.js.errors import NotFoundError
from psycopg import sql
from sqlalchemy.orm import Session

from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.doctor import visit
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack
from howl.models import Task, Worker
from howl.server import migrate
from tests.helpers.support import PATIENCE, Process, eventually, servers_folder

# Before anything reads a setting: no test may reach a server that somebody's environment names.
isolate()

ROOT = Path(__file__).parent.parent
TEMPLATE = "howl_template"
#: Processes that share the whole suite: most tests wait for others, but each process has servers of its own.
PROCESSES = 4
#: Files that take longest, the longest first: one begun at the end would keep a process busy while the others idle.
LONG = ("test_runner", "test_faults", "test_hostile_benchmark", "test_floods", "test_forged_words",
        "test_strangers_at_nats", "test_strange_folder", "test_held_up", "test_rights", "test_signals",
        "test_demo", "test_remote_shutdown", "test_endings", "test_cancelling", "test_task_events", "test_full_disks",
        "test_submit_command", "test_holding", "test_agents_at_work", "test_celery_commands", "test_submit",
        "test_shards", "test_local", "test_secure", "test_presence", "test_tools", "test_events_step",
        "test_up_command", "test_remote_control", "test_workflow")  # fmt: skip
#: Fixtures that start servers.
SERVERS = {"stack", "secured", "servers", "made_server", "start", "demo", "ground", "up"}
_numbers = count(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Several for the whole suite, none for a chosen part of it, which would be done before they had begun."""
    by_path = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if by_path or any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "stepwise")):
        return 0
    return PROCESSES


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are given to processes in this order (--no-loadscope-reorder: it would be by their numbers of tests).

    Whatever uses servers is marked so, by its fixtures.
    """
    for item in items:
        if SERVERS & {*getattr(item, "fixturenames", ())}:
            item.add_marker("servers")
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


#: What keeps other processes out while tests that want to be alone run, one after the other.
_kept: list[IO[str]] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """One test at a time in each process, and while one that wants to be alone runs, in no other process."""
    if not hasattr(item.config, "workerinput"):  # which pytest-xdist gives to the processes that share a suite
        return (yield)
    if not _is_alone(item):
        with _room(fcntl.LOCK_SH):
            return (yield)
    if not _kept:
        _kept.append(_room(fcntl.LOCK_EX))
    try:
        return (yield)
    finally:
        if nextitem is None or not _is_alone(nextitem):  # it takes long until the room is empty: once for them all
            _kept.pop().close()


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _room(way: int) -> IO[str]:
    """A place among those who run tests, shared or for oneself alone, until it is closed."""
    with (ROOT / "pyproject.toml").open() as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)  # or those who share the room would never leave it empty
        room = (ROOT / "Makefile").open()
        fcntl.flock(room, way)
    return room


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Running servers, and in PostgreSQL a migrated database to clone."""
    home = servers_folder("howl-tests-")
    try:
        with Stack(home / "state") as running:
            _forget_durability(running)
            _execute(running.urls.database_url, "CREATE DATABASE {}", TEMPLATE)
            template_url = _database_url(running, TEMPLATE)
            migrate.upgrade(template_url)
            postgres.engine(template_url).dispose()  # a database that somebody uses cannot be cloned
            yield running
    finally:
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """What tests themselves ask of PostgreSQL may take long where other tests keep it busy."""
    with postgres.patient(PATIENCE):
        yield


@pytest.fixture
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at everything, however long a busy machine takes."""
    monkeypatch.setattr(visit, "VISIT_TIMEOUT", 2 * PATIENCE)
    monkeypatch.setattr(visit, "STEP_TIMEOUT", PATIENCE)


@pytest.fixture
def settings(stack: Stack) -> Iterator[Settings]:
    """Settings of a namespace that nobody used before."""
    name = f"t{next(_numbers)}"
    _execute(stack.urls.database_url, "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, TEMPLATE)
    url = _database_url(stack, name)
    yield load_settings(
        redis_url=stack.urls.redis_url,
        nats_url=stack.urls.nats_url,
        database_url=url,
        key_prefix=f"{name}:",
        subject_prefix=name,
        home=stack.home,
        heartbeat_interval=0.5,
        lost_after=3.0,
    )
    postgres.engine(url).dispose()
    eventually(lambda: _dropped(stack, name))
    asyncio.run(_delete_streams(stack.urls.nats_url, name))


@pytest.fixture
def env(settings: Settings) -> dict[str, str]:
    """The same settings as an environment for processes of their own."""
    names = ("redis_url", "nats_url", "database_url", "key_prefix", "subject_prefix", "home", "heartbeat_interval",
             "lost_after")  # fmt: skip
    given = {f"HOWL_{name.upper()}": str(getattr(settings, name)) for name in names}
    # The tests' own tasks are found from wherever a process is started.
    return clean_environment(**given, HOWL_TASK_MODULES="tests.tasks", PYTHONPATH=str(ROOT))


@pytest.fixture
def worker_env(env: dict[str, str]) -> dict[str, str]:
    """What a burst worker is told: no PostgreSQL, and an address in PGHOST's place that nobody answers."""
    return {name: value for name, value in env.items() if name != "HOWL_DATABASE_URL"}


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    """A session on the test's database."""
    with postgres.session(settings.database()) as opened:
        yield opened


@pytest.fixture
def app(settings: Settings) -> Celery:
    """A client's Celery application, with the tasks of tests/tasks.py beside our own."""
    made = create_app(settings.model_copy(update={"task_modules": ("tests.tasks",)}))
    made.set_current()
    made.loader.import_default_modules()
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `howl …` as a process; what still runs at the test's end is ended."""
    running: list[Process] = []

    def _start(*arguments: str, env: dict[str, str], program: str = "howl") -> Process:
        argv = [str(Path(sys.executable).with_name(program)), *arguments]
        log = tmp_path / f"{program}-{len(running)}.log"
        running.append(Process(argv, env, log, forks=True))
        return running[-1]

    yield _start
    for process in reversed(running):
        process.end()


@pytest.fixture
def server(start: Callable[..., Process], env: dict[str, str]) -> Process:
    """A running `howl server`."""
    process = start("server", env=env)
    eventually(lambda: "server is up" in process.output or process.popen.poll() is not None)
    assert process.popen.poll() is None, process.output
    return process


@pytest.fixture
def start_worker(
    start: Callable[..., Process], worker_env: dict[str, str], settings: Settings
) -> Callable[..., Process]:
    """Start `howl worker` without any address of PostgreSQL; returns when it consumes."""

    def _start_worker(name: str = "w1", *arguments: str, env: dict[str, str] | None = None) -> Process:
        process = start("worker", "--name", name, *arguments, env=worker_env | (env or {}))
        eventually(lambda: " ready." in process.output or process.popen.poll() is not None)
        assert process.popen.poll() is None, process.output
        return process

    return _start_worker


@pytest.fixture
def worker_row(settings: Settings) -> Callable[[str], Worker | None]:
    """The row of a worker as it is now."""
    return lambda worker_id: _fresh(settings, Worker, worker_id)


@pytest.fixture
def task_row(settings: Settings) -> Callable[[str], Task | None]:
    """The row of a task as it is now."""
    return lambda task_id: _fresh(settings, Task, task_id)


def _fresh(settings: Settings, model: Any, key: str) -> Any:
    with postgres.session(settings.database()) as opened:
        return opened.get(model, key)


def _dropped(stack: Stack, name: str) -> bool:
    try:
        _execute(stack.urls.database_url, "DROP DATABASE {} WITH (FORCE)", name)
    except psycopg.errors.InsufficientPrivilege:
        return False  # PostgreSQL's own vacuuming looks in, and only a superuser may send it away
    return True


def _forget_durability(stack: Stack) -> None:
    """Only a machine that dies would show the difference, which none does here; databases are made twice as fast."""
    with stack.postgres._connect_as_superuser() as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


async def _delete_streams(url: str, subject_prefix: str) -> None:
    """Each stream reserves its largest size, of which the server has no end."""
    client = await nats.connect(url, connect_timeout=5)
    try:
        for name in (f"{subject_prefix}-events", f"{subject_prefix}-questions", f"OBJ_{subject_prefix}-artifacts"):
            with contextlib.suppress(NotFoundError):  # a test without a server has no stream
                await client.jetstream().delete_stream(name)
    finally:
        await client.close()


def _database_url(stack: Stack, name: str) -> str:
    return f"{stack.urls.database_url.rpartition('/')[0]}/{name}"


def _execute(url: str, statement: str, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
