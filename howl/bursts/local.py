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

#: Most workers of a burst on one machine, and its longest runtime in seconds.
MOST_WORKERS = 64
LONGEST_RUNTIME = 86_400.0
#: Seconds past its deadline after which a worker that has not left is killed.
OVERTIME = 20.0
#: Seconds for a worker to put back its running tasks when told to leave at once.
LAST_WORDS = 10.0
#: Seconds for workers to register, and at the end for the last outcomes to be recorded.
REGISTER_TIMEOUT = 60.0
RECORD_TIMEOUT = 5.0
POLL = 0.5

LOG_TAIL = 2048  # bytes

#: Prefixes of settings that are not passed on as they are: workers do not need PostgreSQL, GitHub or Flower, complete
#: URLs replace hosts and passwords, and the command line says which worker it is.
NOT_PASSED_ON = ("database_", "postgres_", "redis_", "nats_", "worker_", "github_", "flower_")
#: Prefixes of variables that would lead a worker to PostgreSQL, or to other servers than the settings'.
LEADING = ("HOWL_", "MANAGER_", "REDIS_", "NATS_", "POSTGRES_", "PG", "WORKER_", "CELERY_", "FLOWER_")


@dataclass
class LocalWorker:
    """A worker's process, its name and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def alive(self) -> bool:
        """Return whether it runs; record when it was first seen to have ended."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()
        return self.ended is None

    def seconds(self) -> float:
        """Return how many seconds it has run."""
        return (self.ended or time.monotonic()) - self.began

    def log_tail(self) -> str:
        """Return the last few lines it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-8:])


@dataclass(frozen=True, kw_only=True)
class BurstState:
    """The state of a burst."""

    #: Numbers of its workers that have registered, and of its processes that run.
    registered: int
    alive: int
    tasks: TaskCounts
    seconds_left: float

    @property
    def ended(self) -> int:
        """Number of its tasks that have ended."""
        return sum(counts.get(status, 0) for counts in self.tasks.values() for status in FINAL_STATUSES)


@dataclass(frozen=True)
class LocalBurst:
    """A burst with its running workers, until `finish`."""

    request: BurstRequest
    folder: Path
    workers: list[LocalWorker]
    began: float = field(default_factory=time.monotonic)

    def alive(self) -> list[LocalWorker]:
        """Return the workers that have not left yet."""
        return [worker for worker in self.workers if worker.alive()]

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, or 0."""
        return max(0.0, self.began + self.request.runtime - time.monotonic())


# --- starting ----------------------------------------------------------------------------------------------------


def start(request: BurstRequest, settings: Settings) -> LocalBurst:
    """Record a burst and start its workers, which log to `<home>/bursts/<burst id>/<worker id>.log`.

    Removes old bursts' logs. Raises BurstFailed, NotConfigured or DatabaseUnavailable; nothing is left running then.
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
    """Return this process's variables, with the settings a worker needs and without any that lead to PostgreSQL.

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
    if settings.join:  # it holds everything but where a tunnel ends
        servers = {"HOWL_REDIS_PORT": str(settings.redis_port), "HOWL_NATS_PORT": str(settings.nats_port)}
    # .env has been read already: a worker that reads it again would learn PostgreSQL's password.
    return inherited | agents | given | servers | {"HOWL_ENV_FILE": ""}


def _its_own(name: str, request: BurstRequest) -> dict[str, str]:
    """Return the variables by which a worker, and so its tasks, are known to belong to this burst."""
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
    except OSError as error:  # another burst that starts removes logs too
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
                # Ctrl-C in a terminal is for this process, which drains the workers; it would end their pools.
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
    """Yield the burst's state twice a second until all its workers are gone; kill those that overstay."""
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
    """Return the burst's state now, with the counts of `last` while PostgreSQL is unavailable."""
    registered, tasks = (last.registered, last.tasks) if last else (0, {})
    try:
        registered, tasks = records.count(settings.database(), burst.request.names)
    except DatabaseUnavailable as error:
        logger.warning("%s The counts are old.", error.message)
    alive = len(burst.alive())
    return BurstState(registered=registered, alive=alive, tasks=tasks, seconds_left=burst.seconds_left())


def wait_until_registered(burst: LocalBurst, settings: Settings, timeout: float = REGISTER_TIMEOUT) -> BurstState:
    """Return the state in which all workers have registered.

    Raises BurstFailed with the end of a log when they do not all register within `timeout` seconds; those that did
    continue to work.
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
    """Let the workers end what they run, yielding the seconds they still have for it; then kill them.

    After their grace they are told to put running tasks back. A process group is not signalled before the kill: the
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
    """Kill the workers that are left, and their pools, at once."""
    for worker in burst.alive():
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()


def finish(burst: LocalBurst, settings: Settings) -> TaskCounts:
    """Record the end of a burst whose workers are gone; return numbers of tasks by worker and status.

    Raises DatabaseUnavailable.
    """
    minutes = sum(worker.seconds() for worker in burst.workers) / 60
    records.end(settings.database(), burst.request.burst_id, minutes)
    return _final_counts(burst, settings)


def _final_counts(burst: LocalBurst, settings: Settings) -> TaskCounts:
    """Count the tasks, waiting `RECORD_TIMEOUT` seconds at most for the last outcomes to be recorded."""
    deadline = time.monotonic() + RECORD_TIMEOUT
    while True:
        _, tasks = records.count(settings.database(), burst.request.names)
        if time.monotonic() > deadline or not any("started" in counts for counts in tasks.values()):
            return tasks
        time.sleep(POLL)
