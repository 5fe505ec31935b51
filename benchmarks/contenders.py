"""Who is compared: each can start its processes, take tasks, and say how many results are durable."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import redis
from celery import Celery
from click import ClickException

from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from howl.server import migrate

ROOT = Path(__file__).parent.parent
#: Seconds for a process to heed SIGTERM.
PATIENCE = 30


class Contender:
    """A way to run tasks, in a namespace of its own on the shared servers."""

    name: str
    #: What `celery -A` is given.
    application: str

    def __init__(self, stack: Stack, number: int) -> None:
        self.stack = stack
        self.space = f"bench{number}"
        with psycopg.connect(stack.urls.database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.space}")
        self.database_url = f"{stack.urls.database_url.rpartition('/')[0]}/{self.space}"
        self.log = stack.home.parent / f"{self.space}.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.redis = redis.Redis.from_url(stack.urls.redis_url)

    def environment(self) -> dict[str, str]:
        """What its processes are told."""
        raise NotImplementedError

    def worker_command(self, concurrency: int) -> list[str]:
        """The same for all but the application."""
        return ["celery", "-A", self.application, "worker", "--hostname", self.space, "--concurrency",
                str(concurrency), "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]  # fmt: skip

    def done(self) -> int:
        """How many tasks have a final, durable result."""
        raise NotImplementedError

    @contextmanager
    def services(self) -> Iterator[None]:
        """What else must run beside the worker."""
        yield

    def publish(self, task: str, args: tuple[object, ...], count: int) -> None:
        """Put tasks on the queue as any Celery client does, before the clock starts."""
        client = Celery("client", broker=self.stack.urls.redis_url, set_as_current=False)
        client.conf.broker_transport_options = {"global_keyprefix": f"{self.space}:"}
        with client.producer_pool.acquire() as producer, producer.batch(max_size=1000):
            for _ in range(count):
                client.send_task(task, args, producer=producer)
        client.close()

    @contextmanager
    def working(self, concurrency: int) -> Iterator[None]:
        """The worker and what it needs, until the block ends."""
        with ExitStack() as running:
            running.enter_context(self.services())
            running.enter_context(self._process(self.worker_command(concurrency)))
            yield

    @contextmanager
    def _process(self, command: list[str]) -> Iterator[None]:
        with self.log.open("ab") as output:
            argv = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            process = subprocess.Popen(argv, env=self.environment(), cwd=ROOT, stdout=output, stderr=output)
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

    def _count(self, query: str) -> int:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0


class Howl(Contender):
    """HOWL: a worker that knows no PostgreSQL, and `howl server`, which records."""

    name = "HOWL"
    application = "howl"

    def __init__(self, stack: Stack, number: int) -> None:
        super().__init__(stack, number)
        migrate.upgrade(self.database_url)

    def environment(self) -> dict[str, str]:
        return clean_environment(
            HOWL_REDIS_URL=self.stack.urls.redis_url,
            HOWL_NATS_URL=self.stack.urls.nats_url,
            HOWL_DATABASE_URL=self.database_url,
            HOWL_KEY_PREFIX=f"{self.space}:",
            HOWL_SUBJECT_PREFIX=self.space,
            HOWL_TASK_MODULES="benchmarks.tasks",
            HOWL_HOME=str(self.stack.home),
            PYTHONPATH=str(ROOT),
        )

    @contextmanager
    def services(self) -> Iterator[None]:
        with self._process(["howl", "server"]):
            yield

    def done(self) -> int:
        return self._count("SELECT count(*) FROM tasks WHERE rank = 3")


class StockPostgres(Contender):
    """Stock Celery whose children write results to PostgreSQL."""

    name = "Celery, db+postgresql"
    application = "benchmarks.stock"

    def environment(self) -> dict[str, str]:
        return clean_environment(
            BENCH_BROKER=self.stack.urls.redis_url,
            BENCH_BACKEND=self.backend(),
            BENCH_PREFIX=f"{self.space}:",
            PYTHONPATH=str(ROOT),
        )

    def backend(self) -> str:
        return f"db+{self.database_url.replace('postgresql://', 'postgresql+psycopg://')}"

    def done(self) -> int:
        try:
            return self._count("SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'")
        except psycopg.errors.UndefinedTable:
            return 0  # Celery makes its table with the first result


class StockRedis(StockPostgres):
    """Stock Celery whose children write results to Redis, where they expire."""

    name = "Celery, redis"

    def backend(self) -> str:
        return self.stack.urls.redis_url

    def done(self) -> int:
        pattern = f"{self.space}:celery-task-meta-*"
        return sum(1 for _ in self.redis.scan_iter(pattern, count=10_000))


CONTENDERS = {"howl": Howl, "stock-postgresql": StockPostgres, "stock-redis": StockRedis}
