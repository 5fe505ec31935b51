"""The contenders: each can start its processes, take tasks, and count its durable results."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis
from celery import Celery
from click import ClickException

from benchmarks.provisioned import Provisioned
from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from howl.provision.state import SERVER, WORKER
from howl.server import migrate

ROOT = Path(__file__).parent.parent
#: Most seconds for a process to end after SIGTERM.
PATIENCE = 30


class Distance:
    """Proxies that put every address a round trip away; without a distance there are none."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self._ports: dict[int, int] = {}
        self._proxies: list[subprocess.Popen[str]] = []

    def of(self, url: str) -> str:
        """Return the URL of the same server, farther away."""
        port = urlsplit(url).port or 0
        if not self.milliseconds:
            return url
        if port not in self._ports:
            self._ports[port] = _free_port()
            numbers = (str(self._ports[port]), str(port), str(self.milliseconds))
            argv = [sys.executable, "-m", "benchmarks.proxy", *numbers]
            proxy = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            self._proxies.append(proxy)
            if proxy.stdout is None or proxy.stdout.readline() != "ready\n":
                raise ClickException("The proxy did not start.")
        return url.replace(f":{port}", f":{self._ports[port]}")

    def close(self) -> None:
        """End the proxies."""
        for proxy in self._proxies:
            proxy.terminate()
            proxy.wait(PATIENCE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Contender:
    """A system that runs tasks, in a namespace of its own on the shared servers."""

    name: str
    #: The argument of `celery -A`.
    application: str

    def __init__(self, stack: Stack, number: int, distance: "Distance") -> None:
        self.stack = stack
        self.distance = distance
        self.space = f"bench{number}"
        with psycopg.connect(stack.urls.database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.space}")
        self.database_url = f"{stack.urls.database_url.rpartition('/')[0]}/{self.space}"
        self.log = stack.home.parent / f"{self.space}.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.redis = redis.Redis.from_url(stack.urls.redis_url)

    def environment(self) -> dict[str, str]:
        """Return the environment of its worker, with addresses as far away as the distance says."""
        raise NotImplementedError

    def worker_command(self, name: str, concurrency: int, pool: str) -> list[str]:
        """Return the command line of a worker; only the application differs between contenders."""
        return ["celery", "-A", self.application, "worker", "--hostname", name, "--concurrency",
                str(concurrency), "--pool", pool, "--loglevel", "WARNING", "--without-gossip",
                "--without-mingle"]  # fmt: skip

    def done(self) -> int:
        """Return how many tasks have a final, durable result."""
        raise NotImplementedError

    @contextmanager
    def servers(self) -> Iterator[None]:
        """Run what is needed besides the shared servers, from before tasks are published."""
        yield

    @contextmanager
    def services(self) -> Iterator[None]:
        """Run what else is needed besides the worker."""
        yield

    def broker(self) -> str:
        """Return the address at which a client near the servers publishes."""
        return self.stack.urls.redis_url

    def publish(self, task: str, args: tuple[object, ...], count: int) -> None:
        """Put tasks on the queue as any Celery client does, before the clock starts."""
        client = Celery("client", broker=self.broker(), set_as_current=False)
        client.conf.broker_transport_options = {"global_keyprefix": f"{self.space}:"}
        with client.producer_pool.acquire() as producer, producer.batch(max_size=1000):
            for _ in range(count):
                client.send_task(task, args, producer=producer)
        client.close()

    @contextmanager
    def working(self, concurrency: int, workers: int = 1, pool: str = "prefork") -> Iterator[None]:
        """Run the workers, and the services they need, until the block ends."""
        with ExitStack() as running:
            running.enter_context(closing(self._database))
            running.enter_context(self.services())
            for number in range(workers):
                command = self.worker_command(f"{self.space}-{number}", concurrency, pool)
                running.enter_context(self._process(command, self.environment()))
            yield

    @contextmanager
    def _process(self, command: list[str], environment: dict[str, str]) -> Iterator[None]:
        with self.log.open("ab") as output:
            argv = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            process = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=output, stderr=output)
        self.processes.append(process)
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)

    def check(self) -> None:
        """Raise, with the end of the log, if a process ended by itself."""
        if any(process.poll() is not None for process in self.processes):
            raise ClickException(f"{self.name}: a process ended early.\n{self.log.read_text()[-2000:]}")

    @cached_property
    def _database(self) -> psycopg.Connection[Any]:
        """One connection for the whole lap: a login costs both sides as much as many tasks."""
        return psycopg.connect(self.database_url, autocommit=True)

    def _count(self, query: str) -> int:
        row = self._database.execute(query).fetchone()
        return int(row[0]) if row else 0


class Howl(Contender):
    """HOWL: a worker without PostgreSQL, and `howl server`, which records."""

    name = "HOWL"
    application = "howl"
    #: Whether workers send task events; stock Celery's do not by default.
    task_events = False

    def __init__(self, stack: Stack, number: int, distance: "Distance") -> None:
        super().__init__(stack, number, distance)
        migrate.upgrade(self.database_url)

    def environment(self) -> dict[str, str]:
        redis_url, nats_url = map(self.distance.of, self.addresses(WORKER))
        return self._told(HOWL_REDIS_URL=redis_url, HOWL_NATS_URL=nats_url)

    def addresses(self, user: str) -> tuple[str, str]:  # noqa: ARG002  # the embedded servers have one user for all
        """Return the addresses of Redis and NATS for this user, without a distance."""
        return self.stack.urls.redis_url, self.stack.urls.nats_url

    def _told(self, **addresses: str) -> dict[str, str]:
        return clean_environment(
            HOWL_KEY_PREFIX=f"{self.space}:",
            HOWL_SUBJECT_PREFIX=self.space,
            HOWL_TASK_MODULES="benchmarks.tasks",
            HOWL_TASK_EVENTS=str(int(self.task_events)),
            HOWL_HOME=str(self.stack.home),
            PYTHONPATH=str(ROOT),
            **addresses,
        )

    @contextmanager
    def services(self) -> Iterator[None]:
        """Run the server near Redis and PostgreSQL, wherever the worker is."""
        redis_url, nats_url = self.addresses(SERVER)
        near = self._told(HOWL_REDIS_URL=redis_url, HOWL_NATS_URL=nats_url, HOWL_DATABASE_URL=self.database_url)
        with self._process(["howl", "server"], near):
            self._wait_until_it_records()
            yield

    def _wait_until_it_records(self) -> None:
        """Else results that waited for it would count as if they had been made while the clock ran."""
        deadline = time.monotonic() + PATIENCE
        while "server is up" not in self.log.read_text():
            self.check()
            if time.monotonic() > deadline:
                raise ClickException(f"{self.name}: `howl server` is not up after {PATIENCE} s.")
            time.sleep(0.1)

    def done(self) -> int:
        return self._count("SELECT count(*) FROM tasks WHERE rank = 3")


class HowlWithEvents(Howl):
    """HOWL with its default settings: its tasks send events."""

    name = "HOWL, events on"
    task_events = True


class HowlOnDebian(Howl):
    """HOWL with the users and rights that `howl init` makes, on Debian's Redis: the baseline for TLS."""

    name = "HOWL, no TLS"

    def __init__(self, stack: Stack, number: int, distance: "Distance") -> None:
        super().__init__(stack, number, distance)
        self.provisioned = Provisioned(stack.home.parent / f"{self.space}-server", self.space)

    @contextmanager
    def servers(self) -> Iterator[None]:
        with self.provisioned.running():
            yield

    def addresses(self, user: str) -> tuple[str, str]:
        return self.provisioned.redis_url(user, tls=False), self.stack.urls.nats_url

    def broker(self) -> str:
        return self.provisioned.redis_url(SERVER, tls=False)


class HowlOverTls(HowlOnDebian):
    """HOWL with TLS between workers or the server and Redis or NATS, else the same."""

    name = "HOWL, TLS"

    def addresses(self, user: str) -> tuple[str, str]:
        return self.provisioned.redis_url(user, tls=True), self.provisioned.nats_url(user)

    def _told(self, **addresses: str) -> dict[str, str]:
        return super()._told(HOWL_CA_FILE=str(self.provisioned.folder.ca), **addresses)


class StockPostgres(Contender):
    """Stock Celery whose children write results to PostgreSQL."""

    name = "Celery, db+postgresql"
    application = "benchmarks.stock"

    def environment(self) -> dict[str, str]:
        return clean_environment(
            BENCH_BROKER=self.distance.of(self.stack.urls.redis_url),
            BENCH_BACKEND=self.backend(),
            BENCH_PREFIX=f"{self.space}:",
            PYTHONPATH=str(ROOT),
        )

    def backend(self) -> str:
        return f"db+{self.distance.of(self.database_url).replace('postgresql://', 'postgresql+psycopg://')}"

    def done(self) -> int:
        try:
            return self._count("SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'")
        except psycopg.errors.UndefinedTable:
            return 0  # Celery creates its table with the first result


class StockRedis(StockPostgres):
    """Stock Celery whose children write results to Redis, where they expire."""

    name = "Celery, redis"

    def backend(self) -> str:
        return self.distance.of(self.stack.urls.redis_url)

    def done(self) -> int:
        pattern = f"{self.space}:celery-task-meta-*"
        return sum(1 for _ in self.redis.scan_iter(pattern, count=10_000))


CONTENDERS: dict[str, type[Contender]] = {
    "howl": Howl, "stock-postgresql": StockPostgres, "stock-redis": StockRedis,
    "howl-no-tls": HowlOnDebian, "howl-tls": HowlOverTls, "howl-events": HowlWithEvents,
}  # fmt: skip
BESIDE_STOCK = ("howl", "stock-postgresql", "stock-redis")
#: Contenders that differ in events alone.
COST_OF_EVENTS = ("howl-events", "howl")
#: Contenders that differ in TLS alone: one redis-server, one set of users.
COST_OF_TLS = ("howl-no-tls", "howl-tls")
