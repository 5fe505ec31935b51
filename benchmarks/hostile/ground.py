"""The ground of the attacks: servers as `howl init` makes them, `howl server`, and a neighbour's worker under load."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import click
import psycopg

from benchmarks.hostile.thief import MINE, THEIRS, THIEF, VICTIM
from howl.broker.namespaces import Namespace
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.connections.redis import redis_client
from howl.embedded.cluster import SUPERUSER
from howl.embedded.postgres import DATABASE, Postgres
from howl.files import Passwords
from howl.provision.redis import CONFIGURATION
from howl.provision.state import OWNER
from howl.server import migrate
from tests.helpers.servers import HOST, ROOT, Server, howl, psql
from tests.helpers.support import Process, eventually

#: Name of the neighbour's worker.
NEIGHBOUR = f"{VICTIM}-1"
#: Most seconds for a process to be ready, and for the first task to be recorded.
PATIENCE = 60.0
#: Most seconds of a query to Redis or PostgreSQL here.
ASKING = 5.0
#: Most bytes of Redis's client buffers, taken from its configuration file, which `howl server` may not query.
CLIENTS_MEMORY = int(re.findall(r"^maxmemory-clients (\d+)mb$", CONFIGURATION, re.MULTILINE)[0]) << 20

#: Query for the neighbour's tasks that ended in a span, and the seconds from each end until its row was committed.
ENDED = """
SELECT count(*), percentile_disc(0.99) WITHIN GROUP (ORDER BY late), max(late) FROM (
    SELECT (result #>> '{}')::float8 AS ended,
        extract(epoch FROM pg_xact_commit_timestamp(xmin)) - (result #>> '{}')::float8 AS late
    FROM tasks WHERE worker_id = %s AND name = 'bench.clock' AND status = 'succeeded'
) AS known WHERE ended >= %s AND ended < %s
"""


class Servers:
    """The parts made once: what `howl init` writes, two credentials, and PostgreSQL, which ends with the block."""

    def __init__(self, home: Path) -> None:
        if shutil.which("redis-server") is None:
            raise click.ClickException("The benchmark needs Debian's redis-server: apt-get install redis-server.")
        self.home = home
        out = home / "init"
        out.mkdir()
        self.provisioned = Server(out)
        for name, queue in ((THIEF, MINE), (VICTIM, THEIRS)):
            howl("init", "join", "--name", name, "--queues", queue, "--out", out)
        self.postgres = Postgres(home / "postgres", Passwords(home / "passwords.json"))

    def __enter__(self) -> Self:
        (self.home / "postgres").mkdir()
        (self.home / "postgres").chmod(0o711)
        self.postgres.start()
        try:
            # It records when each row was committed; PostgreSQL reads the setting at its start alone.
            with self.superuser("postgres") as connection:
                connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
            self.postgres.stop()
            self.postgres.start()
        except BaseException:
            self.postgres.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.postgres.stop()

    def superuser(self, database: str = DATABASE) -> psycopg.Connection[Any]:
        limit = f"-c statement_timeout={int(ASKING * 1000)}"
        return psycopg.connect(
            self._superuser_url(database), autocommit=True, connect_timeout=int(ASKING), options=limit
        )

    def new_database(self) -> None:
        """Create a database as the postgres image does, and `migrate` after it."""
        with self.superuser("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)".encode())
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        psql(self._superuser_url(DATABASE), self.provisioned.path / "postgres" / "init" / "roles.sql")
        url = self.owner_url
        migrate.upgrade(url)
        postgres.engine(url).dispose()

    @property
    def owner_url(self) -> str:
        password = self.provisioned.folder.existing().passwords[OWNER]
        return f"postgresql://{OWNER}:{password}@{HOST}:{self.postgres.port}/{DATABASE}"

    def server_env(self) -> dict[str, str]:
        """Return the environment of `howl server`, and of clients that submit."""
        return self.provisioned.env(POSTGRES_PORT=str(self.postgres.port), HOWL_TASK_MODULES="benchmarks.tasks")

    def worker_env(self, name: str) -> dict[str, str]:
        """Return the environment of a worker's machine, which holds one secret."""
        return self.provisioned.worker_env(self.provisioned.join(name)) | {"HOWL_TASK_MODULES": "benchmarks.tasks"}

    def settings(self) -> Settings:
        """Return the server's settings."""
        return load_settings(join=self.provisioned.join("server"), database_url=self.owner_url)

    def _superuser_url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}:{self.postgres.passwords[SUPERUSER]}@{HOST}:{self.postgres.port}/{database}"


class Ground:
    """All processes of one row, started with empty servers; they end with the block, even if Redis is busy."""

    def __init__(self, servers: Servers, rate: float, concurrency: int) -> None:
        self.servers, self.rate, self.concurrency = servers, rate, concurrency
        self.settings = servers.settings()
        self.redis: Any = redis_client(self.settings, timeout=ASKING)
        self.processes: dict[str, Process] = {}
        #: Notes on processes that ended by themselves or were killed.
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> Self:
        try:
            shutil.rmtree(self.servers.provisioned.folder.out / "data", ignore_errors=True)
            self.servers.new_database()
            self.servers.provisioned.start_redis()
            self.servers.provisioned.start_nats()
            for name in ("howl server", "worker", "load"):
                self.start(name)
            now = time.time()
            eventually(lambda: self.ended(now, time.time())[0], PATIENCE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with self._lock, ExitStack() as closing:
            closing.callback(self.redis.close)
            closing.callback(self.servers.provisioned.stop)
            for process in self.processes.values():
                closing.callback(process.end)
            for name in ("redis", "nats"):  # a busy Redis does not react to SIGTERM
                with suppress(AssertionError, KeyError):
                    closing.callback(_kill, self.pid(name))

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start `redis`, `nats`, `howl server`, `worker` or `load`, and return when it is ready."""
        if name in ("redis", "nats"):
            getattr(self.servers.provisioned, f"start_{name}")()
            return
        argv, env, sign = self._commands()[name]
        log = self.servers.home / f"{name.replace(' ', '-')}-{time.monotonic_ns()}.log"
        process = self.processes[name] = Process(argv, env, log)
        eventually(lambda: sign in process.output or process.popen.poll() is not None, PATIENCE)
        if process.popen.poll() is not None:
            raise click.ClickException(f"{name} ended at its start.\n{process.output[-2000:]}")

    def pid(self, name: str) -> int:
        """Return the pid of a running process; raises AssertionError or KeyError if it does not run."""
        if name in ("redis", "nats"):
            return self.servers.provisioned.pid(name)
        assert self.processes[name].popen.poll() is None, f"{name} has ended"
        return self.processes[name].pid

    def attend(self, name: str, most: int) -> int:
        """Return its peak memory in bytes; kill it above `most`, and restart it if it has ended, as compose does."""
        with self._lock:
            if self._over:
                return 0
            try:
                pid = self.pid(name)
            except AssertionError:
                self.note(f"{name} ended")
                with suppress(AssertionError, click.ClickException):  # the next call tries again
                    self.start(name)
                return 0
            try:
                highest, now = _memory(pid)
            except (KeyError, OSError):
                return 0  # it is just ending
        if now > most:
            self.note(f"{name} killed at {now >> 20} MiB")
            _kill(pid)
        return highest

    def note(self, what: str) -> None:
        """Keep a note for the row, and print it at once."""
        self.notes.append(what)
        click.echo(f"  {what}", err=True)

    def attackers(self, seconds: float, names: list[str]) -> subprocess.Popen[str]:
        """Start processes with the thief's credential, which begin when they read a line."""
        argv = [sys.executable, "-m", "benchmarks.hostile.loops", str(seconds), *names]
        log = (self.servers.home / "attackers.log").open("a")
        with log:
            made = subprocess.Popen(
                argv, env=self.servers.worker_env(THIEF), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        if made.stdout is None or made.stdout.readline() != "ready\n":
            made.kill()
            raise click.ClickException(f"Attackers do not start: see {log.name}.")
        return made

    def _commands(self) -> dict[str, tuple[list[str], dict[str, str], str]]:
        program = str(Path(sys.executable).with_name("howl"))
        worker = ["worker", "--name", NEIGHBOUR, "--concurrency", str(self.concurrency)]
        server_env = self.servers.server_env()
        return {
            "howl server": ([program, "server"], server_env, "server is up"),
            "worker": ([program, *worker], self.servers.worker_env(VICTIM), " ready."),
            "load": ([sys.executable, "-m", "benchmarks.hostile.load", str(self.rate)], server_env, "loading"),
        }

    # --- what is seen -----------------------------------------------------------------------------------------------

    def ended(self, since: float, until: float) -> tuple[int, float | None, float | None]:
        """Return, for the neighbour's tasks that ended then, how many are recorded, and the p99 and longest wait."""
        with self.servers.superuser() as connection:
            row = connection.execute(ENDED.encode(), (NEIGHBOUR, since, until)).fetchone()
        return row if row is not None else (0, None, None)

    def database_bytes(self) -> int:
        """Return the bytes of HOWL's database."""
        with self.servers.superuser() as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

    def oldest_unrecorded(self) -> float | None:
        """Return the Unix time at which Redis got the neighbour's oldest unrecorded outcome; raises redis's errors."""
        stream = Namespace(self.settings.key_prefix, VICTIM).key("outcomes")
        entries = self.redis.xrange(stream, count=1)
        return int(entries[0][0].partition(b"-")[0]) / 1000 if entries else None

    def unrecorded(self, until: float) -> int:
        """Count the unrecorded ends that Redis got up to `until`, among the oldest 10,000 outcomes."""
        stream = Namespace(self.settings.key_prefix, VICTIM).key("outcomes")
        entries = self.redis.xrange(stream, "-", int(until * 1000), count=10_000)
        # The stream also holds starts: a run that takes a while under load reports its start first.
        return sum(b'"SUCCESS"' in value for _, fields in entries for value in fields.values())

    def redis_memory(self) -> tuple[int, int]:
        """Return the peak of Redis's memory and its limit, in bytes; raises redis's errors.

        A full Redis reads a command before it refuses it: `maxmemory-clients` bounds the memory of such commands.
        """
        known = self.redis.info("memory")
        return int(known["used_memory_peak"]), int(known["maxmemory"]) + CLIENTS_MEMORY

    def is_well(self, patience: float) -> bool:
        """Return whether a task that ends from now on is recorded within `patience` seconds."""
        now, deadline = time.time(), time.monotonic() + patience
        while time.monotonic() < deadline:
            with suppress(psycopg.Error):
                if self.ended(now, time.time())[0]:
                    return True
            time.sleep(0.2)
        return False


def _memory(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process in bytes: its peak, and now."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))  # type: ignore[return-value]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
