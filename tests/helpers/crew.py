"""A server and one worker in a namespace of their own, and what they leave on record."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import nats
import psycopg
import redis
from celery import Celery
from nats.js.errors import NotFoundError
from psycopg import sql
from sqlalchemy import select

from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.connections.tls import redis_options
from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from howl.models import Task, TaskEvent
from tests.helpers.support import Process, eventually

ROOT = Path(__file__).parent.parent.parent
HOWL, CELERY = (str(Path(sys.executable).with_name(name)) for name in ("howl", "celery"))
TASKS = "tests.helpers.ending_tasks"


def said(process: Process, word: str) -> None:
    """Wait until the process, which must not end before, has."""
    eventually(lambda: word in process.output or process.popen.poll() is not None)
    assert process.popen.poll() is None, process.output


class Crew:
    """Started for a whole module: a test looks at its own tasks alone."""

    def __init__(self, stack: Stack, name: str, pool: str, folder: Path) -> None:
        self.stack, self.name, self.pool, self.folder = stack, name, pool, folder
        self._execute("CREATE DATABASE {} TEMPLATE howl_template")
        self.processes: list[Process] = []
        self.adopt(
            load_settings(
                redis_url=stack.urls.redis_url,
                nats_url=stack.urls.nats_url,
                database_url=f"{stack.urls.database_url.rpartition('/')[0]}/{name}",
                key_prefix=f"{name}:",
                subject_prefix=name,
                home=stack.home,
                task_modules=(TASKS,),
            )
        )

    def adopt(self, settings: Settings) -> None:
        """Make its clients, with these settings."""
        self.settings = settings
        self.redis: Any = redis.Redis.from_url(settings.redis(), **redis_options(settings))
        self.app: Celery = create_app(self.settings)
        self.app.loader.import_default_modules()

    def start(self) -> None:
        names = ("redis_url", "nats_url", "database_url", "key_prefix", "subject_prefix", "home")
        given = {f"HOWL_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        self.env = clean_environment(**given, HOWL_TASK_MODULES=TASKS, PYTHONPATH=str(ROOT))
        server = self.run("server", env=self.env)
        self.worker = self.hire("w1", "--pool", self.pool, "--concurrency", "1" if self.pool == "solo" else "2")
        said(server, "server is up")
        said(self.worker, " ready.")

    def hire(self, name: str, *options: str) -> Process:
        """Begin to start a worker, which is told nothing of PostgreSQL."""
        env = {name: value for name, value in self.env.items() if name != "HOWL_DATABASE_URL"}
        return self.run("worker", "--name", name, *options, env=env)

    def run(self, *arguments: str, env: dict[str, str], program: str = HOWL) -> Process:
        """Start `howl …`, which ends with the crew."""
        log = self.folder / f"{arguments[0]}-{len(self.processes)}.log"
        self.processes.append(Process([program, *arguments], env, log, forks=True))
        return self.processes[-1]

    def end(self) -> None:
        for process in reversed(self.processes):
            process.end()
        self.redis.close()
        self.app.close()
        postgres.engine(self.settings.database()).dispose()
        eventually(self._dropped)
        asyncio.run(self._delete_streams())

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, name: str, *args: Any, **options: Any) -> str:
        """Send one of tests/helpers/ending_tasks.py, and return its id."""
        return str(self.app.tasks[f"endings.{name}"].apply_async(args, **options).id)

    def push(self, message: bytes) -> None:
        """Put bytes on the queue, whatever they are."""
        self.redis.lpush(self.key("celery"), message)

    # --- looking ----------------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        return self.settings.key(name)

    def row(self, task_id: str) -> Task | None:
        with postgres.session(self.settings.database()) as opened:
            return opened.get(Task, task_id)

    def finished(self, task_id: str) -> Task:
        """The row when the task has ended."""
        return eventually(lambda: (row := self.row(task_id)) and row.finished_at and row)

    def ended(self, task_id: str) -> Task:
        """The row when the task has ended, and its message is nobody's."""
        row = self.finished(task_id)
        self.is_not_held(task_id)
        return row

    def is_not_held(self, task_id: str) -> None:
        eventually(lambda: not [claim for claim in self.held() if task_id.encode() in claim])

    def events(self, task_id: str) -> list[TaskEvent]:
        """What its outcomes came to; what was seen of it meanwhile comes in its own time."""
        told = TaskEvent.source.startswith("outcome:")
        query = select(TaskEvent).where(TaskEvent.task_id == task_id, told).order_by(TaskEvent.event_id)
        with postgres.session(self.settings.database()) as opened:
            return list(opened.scalars(query))

    def kinds(self, task_id: str) -> list[str]:
        """What happened to the task, without its beginnings: those of a short run are told with its end."""
        return [event.kind for event in self.events(task_id) if event.kind != "started"]

    def held(self) -> list[bytes]:
        """All that owners hold, notes of beginnings included."""
        keys = self.redis.scan_iter(self.key("claims:*"), count=1000)
        return [value for claims in keys for value in self.redis.hvals(claims)]

    def leases(self) -> list[tuple[bytes, float]]:
        """Owners and how many seconds their leases still run."""
        seconds, _ = self.redis.time()
        given = self.redis.zrange(self.key("leases"), 0, -1, withscores=True)
        return [(owner, deadline / 1000 - seconds) for owner, deadline in given]

    # --- the namespace ----------------------------------------------------------------------------------------------

    def _dropped(self) -> bool:
        try:
            self._execute("DROP DATABASE {} WITH (FORCE)")
        except psycopg.errors.InsufficientPrivilege:
            return False  # PostgreSQL's own vacuuming looks in, and only a superuser may send it away
        return True

    async def _delete_streams(self) -> None:
        client = await nats.connect(self.stack.urls.nats_url, connect_timeout=5)
        try:
            for name in (f"{self.name}-events", f"{self.name}-questions", f"OBJ_{self.name}-artifacts"):
                with contextlib.suppress(NotFoundError):  # the server ended before it had made one
                    await client.jetstream().delete_stream(name)
        finally:
            await client.close()

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.stack.urls.database_url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(self.name)))
