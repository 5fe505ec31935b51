"""Bursts on this machine: workers as processes of their own that leave by themselves when their time is up."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from howl.bursts import logs, records
from howl.bursts.records import TaskCounts
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.env_file import require_chosen_servers
from howl.errors import BurstFailed, DatabaseUnavailable
from howl.outcomes import FINAL_STATUSES
from howl.worker.lifecycle.environment import CREDENTIALS

logger = logging.getLogger(__name__)

#: Most workers a burst may start on one machine, and its longest runtime in seconds.
MOST_WORKERS = 64
LONGEST_RUNTIME = 86_400.0
#: Seconds beyond its deadline after which a worker that has not left is killed.
OVERTIME = 20.0
#: Seconds for a worker to put its running tasks back when it is told to leave at once.
LAST_WORDS = 10.0
#: Seconds for workers to register, and at the end for the last outcomes to be recorded.
REGISTER_TIMEOUT = 60.0
RECORD_TIMEOUT = 5.0
POLL = 0.5

LOG_TAIL = 2048  # bytes

#: Settings that are not passed on as they are: PostgreSQL, GitHub and Flower are none of a worker's business, complete
#: URLs replace hosts and passwords, and who it is its command line says.
NOT_PASSED_ON = ("database_", "postgres_", "redis_", "nats_", "worker_", "github_", "flower_")
#: Variables of this process that would lead a worker to PostgreSQL, or to other servers than the settings'.
LEADING = ("HOWL_", "MANAGER_", "REDIS_", "NATS_", "POSTGRES_", "PG", "WORKER_", "CELERY_", "FLOWER_")


@dataclass
class LocalWorker:
    """One worker's process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def alive(self) -> bool:
        """Whether it runs; notes when it was first seen not to."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()
        return self.ended is None

    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.began

    def log_tail(self) -> str:
        """The last few lines it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-8:])


@dataclass(frozen=True, kw_only=True)
class BurstState:
    """How a burst is doing."""

    #: How many of its workers the server has heard of, and how many processes run.
    registered: int
    alive: int
    tasks: TaskCounts
    seconds_left: float

    @property
    def ended(self) -> int:
        """Tasks that are over."""
        return sum(counts.get(status, 0) for counts in self.tasks.values() for status in FINAL_STATUSES)


@dataclass(frozen=True)
class LocalBurst:
    """Running workers, until `finish`."""

    request: BurstRequest
    folder: Path
    workers: list[LocalWorker]
    began: float = field(default_factory=time.monotonic)

    def alive(self) -> list[LocalWorker]:
        """Those that have not left yet."""
        return [worker for worker in self.workers if worker.alive()]

    def seconds_left(self) -> float:
        """Until the deadline."""
        return max(0.0, self.began + self.request.runtime - time.monotonic())


# --- starting ----------------------------------------------------------------------------------------------------


def start(request: BurstRequest, settings: Settings) -> LocalBurst:
    """Record a burst and start its workers; they log to `<home>/bursts/<burst id>/<worker id>.log`.

    Old bursts' logs go. Raises BurstFailed, NotConfigured or DatabaseUnavailable; nothing is left running then.
    """
    require_chosen_servers()
    environment = worker_environment(settings)
    _check(request)
    folder = _make_folder(settings.home / "bursts" / request.burst_id)
    _record_start(request, settings)
    _tidy(folder.parent, settings)
    burst = LocalBurst(request, folder, [])
    try:
        for name in request.names:
            burst.workers.append(_start_worker(name, request, folder, environment | _its_own(name, request)))
    except BaseException:
        kill(burst)
        finish(burst, settings)
        raise
    return burst


def worker_environment(settings: Settings) -> dict[str, str]:
    """This process's variables, with the settings a worker needs and without any that lead to PostgreSQL.

    Raises NotConfigured.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(LEADING) or CREDENTIALS.fullmatch(name))
    }
    agents = {name: os.environ[name] for name in settings.agent_env if name in os.environ}
    values = settings.model_dump(exclude_none=True)
    given = {
        f"HOWL_{name.upper()}": _as_variable(values[name]) for name in values if not name.startswith(NOT_PASSED_ON)
    }
    servers = {"HOWL_REDIS_URL": settings.redis(), "HOWL_NATS_URL": settings.nats()}
    if settings.join:  # which says all but where a tunnel ends
        servers = {"HOWL_REDIS_PORT": str(settings.redis_port), "HOWL_NATS_PORT": str(settings.nats_port)}
    # What .env says has been read: a worker that reads it again would learn PostgreSQL's password.
    return inherited | agents | given | servers | {"HOWL_ENV_FILE": ""}


def _its_own(name: str, request: BurstRequest) -> dict[str, str]:
    """By which a worker, and so its tasks, are known to be of this burst."""
    return {"HOWL_BURST_ID": request.burst_id, "HOWL_WORKER_INDEX": name.rpartition("-")[2]}


def _as_variable(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check(request: BurstRequest) -> None:
    if not 1 <= request.workers <= MOST_WORKERS:
        raise BurstFailed(f"A burst on one machine has 1 to {MOST_WORKERS} workers.")
    if not 0 < request.runtime <= LONGEST_RUNTIME:
        raise BurstFailed(f"A burst's runtime is at most {LONGEST_RUNTIME / 3600:g} hours.")
    if not 0 < request.patience < request.runtime:
        raise BurstFailed("The runtime must be longer than the grace for draining.")


def _make_folder(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise BurstFailed(f"The workers have no place for their logs ({error}): choose another HOWL_HOME.") from error
    return folder


def _tidy(folder: Path, settings: Settings) -> None:
    try:
        logs.tidy(folder, records.running_here(settings.database(), since=LONGEST_RUNTIME + OVERTIME))
    except OSError as error:  # another burst's start tidies too
        logger.warning("Logs of old bursts stay where they are: %s.", error)


def _record_start(request: BurstRequest, settings: Settings) -> None:
    records.begin(
        settings.database(),
        burst_id=request.burst_id,
        origin="local",
        requested_by=request.requested_by,
        num_workers=request.workers,
        runtime_minutes=request.runtime / 60,
        minutes_planned=request.workers * request.runtime / 60,
        request={
            "tags": request.tags,
            "queues": request.queues,
            "concurrency": request.concurrency,
            "grace": request.patience,
        },
        run={"hostname": socket.gethostname(), "pid": os.getpid()},
    )


def _start_worker(name: str, request: BurstRequest, folder: Path, environment: dict[str, str]) -> LocalWorker:
    path = folder / f"{name}.log"
    try:
        with path.open("xb") as log:
            process = subprocess.Popen(
                _command_line(name, request),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for us, who tell the workers to drain; to their pools it would be the end.
                start_new_session=True,
            )
    except OSError as error:
        raise BurstFailed(f"Worker {name} could not be started: {error}.") from error
    return LocalWorker(name, process, path)


def _command_line(name: str, request: BurstRequest) -> list[str]:
    line = [sys.executable, "-P", "-m", "howl.cli", "worker", "--name", name, "--origin", "local"]
    line += ["--runtime", f"{request.runtime:.3f}", "--grace", f"{request.patience:.3f}"]
    if request.concurrency:
        line += ["--concurrency", str(request.concurrency)]
    if request.tags:
        line += ["--tags", ",".join(request.tags)]
    if request.queues:
        line += ["--queues", ",".join(request.queues)]
    return line


# --- watching ----------------------------------------------------------------------------------------------------


def watch(burst: LocalBurst, settings: Settings) -> Iterator[BurstState]:
    """Its state twice a second, until all its workers are gone; those that overstay are killed."""
    state = look(burst, settings)
    while burst.alive():
        yield state
        time.sleep(POLL)
        if time.monotonic() > burst.began + burst.request.runtime + OVERTIME:
            logger.warning("Workers of burst %s outstayed their deadline: killing them.", burst.request.burst_id)
            kill(burst)
        state = look(burst, settings, state)
    yield state


def look(burst: LocalBurst, settings: Settings, last: BurstState | None = None) -> BurstState:
    """Its state now; while PostgreSQL is away, with the counts of `last`."""
    registered, tasks = (last.registered, last.tasks) if last else (0, {})
    try:
        registered, tasks = records.count(settings.database(), burst.request.names)
    except DatabaseUnavailable as error:
        logger.warning("%s The counts are old.", error.message)
    alive = len(burst.alive())
    return BurstState(registered=registered, alive=alive, tasks=tasks, seconds_left=burst.seconds_left())


def wait_until_registered(burst: LocalBurst, settings: Settings, timeout: float = REGISTER_TIMEOUT) -> BurstState:
    """The state in which the server has heard of all workers.

    Raises BurstFailed with the end of a log when they do not all register in time; those that did work on.
    """
    deadline = time.monotonic() + timeout
    for state in watch(burst, settings):
        if state.registered == burst.request.workers:
            return state
        if time.monotonic() > deadline:
            break
    silent = next((worker for worker in burst.workers if not worker.alive()), burst.workers[0])
    raise BurstFailed(f"Not all workers registered within {timeout:g} s; {silent.log} ends with:\n{silent.log_tail()}")


# --- ending ------------------------------------------------------------------------------------------------------


def drain(burst: LocalBurst) -> Iterator[float]:
    """Let the workers end what they run; yields the seconds they still have for it, then they are killed.

    After their grace they are told to put running tasks back. The process group is never signalled before that: its
    pool's children would die with their tasks.
    """
    for number, patience in ((signal.SIGTERM, burst.request.patience), (signal.SIGQUIT, LAST_WORDS)):
        deadline = time.monotonic() + patience
        for worker in burst.alive():
            worker.process.send_signal(number)
        while burst.alive() and time.monotonic() < deadline:
            yield deadline - time.monotonic()
            time.sleep(POLL / 5)
    kill(burst)


def kill(burst: LocalBurst) -> None:
    """End what is left of the workers and of their pools, at once."""
    for worker in burst.alive():
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()


def finish(burst: LocalBurst, settings: Settings) -> TaskCounts:
    """Record the end of a burst whose workers are gone; returns their tasks by worker and status.

    Raises DatabaseUnavailable.
    """
    minutes = sum(worker.seconds() for worker in burst.workers) / 60
    records.end(settings.database(), burst.request.burst_id, minutes)
    return _final_counts(burst, settings)


def _final_counts(burst: LocalBurst, settings: Settings) -> TaskCounts:
    """The last outcomes may still be on their way into the record."""
    deadline = time.monotonic() + RECORD_TIMEOUT
    while True:
        _, tasks = records.count(settings.database(), burst.request.names)
        if time.monotonic() > deadline or not any("started" in counts for counts in tasks.values()):
            return tasks
        time.sleep(POLL)
