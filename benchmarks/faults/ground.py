"""The ground of a scenario: real processes in a namespace of their own, and the counts taken at the end."""

import json
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
from celery import Celery

from benchmarks.faults.log import Log
from benchmarks.faults.witness import Diary, Witness
from howl.broker.namespaces import namespace_of
from howl.config import Settings
from howl.connections.redis import redis_client
from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from tests.helpers.support import PATIENCE, Process, eventually

ROOT = Path(__file__).parents[2]
#: Settings passed to processes; a worker does not get the database.
TOLD = ("redis_url", "nats_url", "database_url", "key_prefix", "subject_prefix", "home", "heartbeat_interval",
        "lost_after", "lease", "push_again_after")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Account:
    """The counts of a scenario."""

    tasks: int
    #: Faults that were injected.
    faults: int
    #: Tasks without a final outcome in the record.
    lost: int
    #: Final outcomes accepted after the first of a task and attempt.
    twice: int
    #: Runs after the first of a task, and how many of them the faults explain: tasks that were running at a fault, or
    #: whose claim Redis has forgotten.
    started_again: int
    running_at_faults: int
    #: Claims that are still held although every task has ended.
    stranded: int
    #: Ends that a worker was refused as stale.
    stale: int
    dead: int
    #: Entries of the stream that the witness has not seen: if there are any, `twice` proves nothing.
    unseen: int
    #: Failures of what a scenario checks in addition.
    wrong: int = 0
    #: Processes of killed workers that still run at the end.
    orphans: int = 0
    seconds: float = 0.0

    @property
    def extra(self) -> int:
        """Runs after the first that no fault explains."""
        return max(0, self.started_again - self.running_at_faults)


class Ground:
    """The servers, processes and witnesses of a scenario; all of them end with the block."""

    def __init__(self, stack: Stack, settings: Settings, folder: Path, seed: int = 3) -> None:
        self.stack = stack
        self.settings = settings
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311  # repeatable, no secret
        self.redis: Any = redis_client(settings)
        self.diary = Diary(folder / "diary")
        self.namespace = namespace_of(settings)
        self.log = Log(stack, self.redis)
        self.witness = Witness(settings, folder / "witness", self.redis, self.log)
        self.client = _client(settings)
        self.task_ids: list[str] = []
        self.processes: list[Process] = []
        self.killed: list[Process] = []
        self.faults = 0
        #: How often Redis has forgotten the claim of each message.
        self.forgotten: Counter[str] = Counter()
        #: For each fault, the ids that the worker held, and the processes that were hit.
        self._struck: list[tuple[set[str], set[int]]] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self.reader = self.start("python", "-m", "benchmarks.faults.reader", str(self.folder / "witness"))
            self.awaited(self.reader, "reading")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            closing.callback(self.redis.close)
            closing.callback(self.client.close)
            for process in self.processes:
                closing.callback(process.end)

    # --- processes --------------------------------------------------------------------------------------------------

    def server(self) -> Process:
        """Start `howl server`, and wait until it is up."""
        return self.awaited(self.start("howl", "server"), "server is up")

    def worker(self, name: str, *arguments: str, redis_url: str | None = None, wait: bool = True) -> Process:
        """Start a worker with four children (or as `arguments` say), which reaches Redis by `redis_url` if given."""
        options = arguments or ("--concurrency", "4")
        told = {"HOWL_REDIS_URL": redis_url} if redis_url else {}
        process = self.start("howl", "worker", "--name", name, *options, database=False, **told)
        return self.awaited(process, " ready.") if wait else process

    def start(self, program: str, *arguments: str, database: bool = True, **told: str) -> Process:
        """Start any program from the folder of this interpreter."""
        argv = [str(Path(sys.executable).with_name(program)), *arguments]
        env = self.environment(database=database) | told
        self.processes.append(Process(argv, env, self.folder / f"process-{len(self.processes)}.log"))
        return self.processes[-1]

    def environment(self, *, database: bool = True) -> dict[str, str]:
        """Return the environment of a process; that of a worker has no database."""
        given = {f"HOWL_{name.upper()}": str(getattr(self.settings, name)) for name in TOLD}
        if not database:
            del given["HOWL_DATABASE_URL"]
        return clean_environment(**given, HOWL_TASK_MODULES="benchmarks.tasks,tests.tasks", PYTHONPATH=str(ROOT))

    def awaited(self, process: Process, word: str) -> Process:
        """Wait until a process prints `word`, and return it."""
        eventually(lambda: word in process.output or process.popen.poll() is not None)
        assert process.popen.poll() is None, process.output
        return process

    def kill(self, process: Process, name: str) -> None:
        """Kill a worker's main process by SIGKILL; its children live on."""
        pids = {process.pid, *children(process.pid)}
        process.popen.kill()
        process.popen.wait(PATIENCE)
        self.struck(name, pids)
        self.killed.append(process)

    def struck(self, name: str, pids: set[int], held: Iterable[str] = ()) -> None:
        """Record a fault of these processes: the tasks they run, of those this worker holds or held, may run again."""
        self.faults += 1
        self._struck.append(({*self.held(name), *held}, pids))

    def held(self, name: str) -> set[str]:
        """Return the ids of the tasks that all lives of this worker hold."""
        keys = self.redis.keys(self.namespace.key(f"claims:celery@{name}.*"))
        claims = [value for key in keys for tag, value in self.redis.hgetall(key).items() if tag[:6] != b"began:"]
        return {json.loads(claim.partition(b"\n")[2])["headers"]["id"] for claim in claims}

    def wait_for_work(self, name: str, patience: float = 5.0) -> None:
        """Wait until this worker holds a task, at most `patience` seconds: most faults should hit a running task."""
        deadline = time.monotonic() + patience
        while not self.held(name) and time.monotonic() < deadline:
            time.sleep(0.01)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def publish(self, count: int, seconds: float, countdown: float = 0.0) -> None:
        """Publish tasks that write the diary and take up to twice `seconds` each, as any Celery client does.

        With a countdown, every second one waits up to that many seconds.
        """
        with self.client.producer_pool.acquire() as producer:
            for number in range(count):
                self.task_ids.append(str(uuid.uuid4()))
                arguments = (str(self.diary.path), self.random.uniform(0, 2 * seconds))
                wait = self.random.uniform(0, countdown) if number % 2 and countdown else None
                self.client.send_task(
                    "bench.diary", arguments, task_id=self.task_ids[-1], producer=producer, countdown=wait
                )

    def send(self, name: str, *arguments: Any, count: int = 1, countdown: float | None = None) -> None:
        """Publish any task, `count` times."""
        with self.client.producer_pool.acquire() as producer:
            for _ in range(count):
                self.task_ids.append(str(uuid.uuid4()))
                self.client.send_task(
                    name, arguments, task_id=self.task_ids[-1], producer=producer, countdown=countdown
                )

    def ended(self, task_ids: list[str] | None = None) -> set[str]:
        """Return those of these tasks, by default of all, that have a final row."""
        with psycopg.connect(self.settings.database()) as connection:
            query = "SELECT task_id FROM tasks WHERE rank = 3 AND task_id = ANY(%s)"
            rows = connection.execute(query, (self.task_ids if task_ids is None else task_ids,)).fetchall()
        return {task_id for (task_id,) in rows}

    def wait_for_ends(self, patience: float) -> None:
        """Wait until every task has ended, or none has for `patience` seconds: the others are lost."""
        seen, since = len(self.ended()), time.monotonic()
        while seen < len(self.task_ids) and time.monotonic() - since < patience:
            time.sleep(0.2)
            now = len(self.ended())
            if now > seen:
                seen, since = now, time.monotonic()

    # --- the account ------------------------------------------------------------------------------------------------

    def account(self, patience: float = 30.0, *, wrong: int = 0) -> Account:
        """Wait for the ends, then count."""
        self.wait_for_ends(patience)
        unseen = self.witness.unseen()
        lost = len(self.task_ids) - len(self.ended())
        stranded = self.stranded()
        starts = self.diary.starts()
        return Account(
            tasks=len(self.task_ids),
            faults=self.faults,
            lost=lost,
            twice=sum(count - 1 for count in self.witness.finals.values()),
            started_again=sum(starts.values()) - len(starts),
            running_at_faults=self._running_at_faults() + _again(starts, self.forgotten),
            stranded=stranded,
            stale=sum(process.output.count(" is stale: ") for process in self.processes),
            dead=self.witness.dead,
            unseen=unseen,
            wrong=wrong,
            orphans=sum(len(group(process.pid)) for process in self.killed),
            seconds=round(time.monotonic() - self._began, 1),
        )

    def stranded(self) -> int:
        """Count claims still held after time for a settle to arrive, and for a dead owner's lease to run out."""
        deadline = time.monotonic() + 2 * self.settings.lease + 2
        while (held := self._claims()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return held

    def _claims(self) -> int:
        keys = self.redis.keys(self.namespace.key("claims:*"))
        return sum(1 for key in keys for tag in self.redis.hkeys(key) if tag[:6] != b"began:")

    def _running_at_faults(self) -> int:
        runs = {(line.task_id, line.pid) for line in self.diary.lines() if line.kind == "began"}
        return sum(1 for ids, pids in self._struck for task_id, pid in runs if task_id in ids and pid in pids)


def _again(starts: Counter[str], forgotten: Counter[str]) -> int:
    """Count the runs after the first that forgotten claims explain, task by task."""
    return sum(min(times, starts[task_id] - 1) for task_id, times in forgotten.items() if starts[task_id])


def children(pid: int) -> list[int]:
    """Return a process's children now, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def group(pid: int) -> list[int]:
    """Return the processes of a group that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it ended
        if int(number) == pid and state != "Z":
            found.append(int(folder.name))
    return found


def strike(pids: list[int]) -> None:
    """Send SIGKILL to processes, whether or not they still run."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _client(settings: Settings) -> Celery:
    made = Celery("client", broker=settings.redis(), set_as_current=False)
    made.conf.broker_transport_options = {"global_keyprefix": settings.key_prefix}
    return made
