"""Access to Celery's pools: their size, and what prefork alone offers, whole writes to children and jobs taken back."""

import select
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.worker import state

#: Bytes that a pipe takes all of or none of (POSIX).
ATOMIC = select.PIPE_BUF
NOTHING = memoryview(b"")
#: Short tasks handed to prefork for each child: one that runs, and two that are ready when it has ended.
AHEAD = 3


def slots(pool: Any) -> int:
    """Return how many tasks the pool can run at once; also when it has stopped, while its last tasks are reported."""
    processes = _processes(pool)
    return int(processes._processes if processes is not None else pool.limit or 1)  # noqa: SLF001  # pool_grow changes it


def slots_to_fill(worker: Any) -> int:
    """Return how many tasks the pool can run, or may grow to when it is handed more than it runs (`--autoscale`)."""
    return max(slots(worker.pool), worker.autoscaler.max_concurrency if worker.autoscaler else 0)


def most_in_hand(pool: Any) -> int:
    """Return how many short tasks each slot may be handed: more than one only where they can be taken back."""
    return AHEAD if _processes(pool) is not None else 1


def make_resizable(pool: Any) -> None:
    """Let remote control grow and shrink threads as well as processes, at once; keep one, for with none it idles."""
    grow, shrink = getattr(pool, "grow", None), getattr(pool, "shrink", None)
    if hasattr(pool, "executor"):
        grow, shrink = partial(_grow_threads, pool), partial(_shrink_threads, pool)
    if grow is not None and shrink is not None:  # solo always has one
        pool.grow = partial(_grow_at_once, pool, grow)
        pool.shrink = partial(_shrink_but_keep_one, pool, shrink)


def _grow_threads(pool: Any, n: int) -> None:
    pool.limit += n
    pool.executor._max_workers += n  # noqa: SLF001  # read when a job comes; tests/worker/lifecycle/test_remote_control.py grows it


def _shrink_threads(pool: Any, n: int) -> None:
    pool.limit -= n  # threads that are left over have nothing to do: no more is taken than `slots` says


def _grow_at_once(pool: Any, grow: Callable[[int], None], n: int = 1) -> None:
    grow(n)
    pool.maintain_pool()  # which starts processes; Celery would within five seconds


def _shrink_but_keep_one(pool: Any, shrink: Callable[[int], None], n: int = 1) -> None:
    if n >= slots(pool):
        raise ValueError(f"{slots(pool)} is all there is, and one must stay: shut the worker down instead")
    shrink(n)


def pids(pool: Any) -> list[int]:
    """Return the process ids of the pool's children; threads have none."""
    processes = _processes(pool)
    return [] if processes is None else [process.pid for process in processes._pool]  # noqa: SLF001


def withdraw(pool: Any, semaphore: Any, request: Any) -> str | None:
    """Take back a request that no child has been sent yet; return its claim's tag, or None if it is too late."""
    if _leaves_the_pool(pool, request):
        if semaphore is not None:
            semaphore.release()  # as its end would have
    elif not _leaves_the_queue(semaphore, request):
        return None
    state.task_ready(request)
    return str(request.claim_tag)


def _leaves_the_pool(pool: Any, request: Any) -> bool:
    job = request._apply_result() if request._apply_result is not None else None  # noqa: SLF001  # a weak reference
    waiting: Any = getattr(_processes(pool), "outbound_buffer", ())
    if job is None or job not in waiting:
        return False
    waiting.remove(job)
    job.discard()
    return True


def _leaves_the_queue(semaphore: Any, request: Any) -> bool:
    """Remove a request that waits for this semaphore: Celery gives prefork only as many jobs as it has children."""
    queue: Any = getattr(semaphore, "_waiting", ())
    entry = next((waiting for waiting in queue if waiting[1] == (request,)), None)
    if entry is not None:
        queue.remove(entry)
    return entry is not None


def write_whole_jobs(pool: Any) -> None:
    """Have a prefork pool write a job's length and its body together.

    Written apart, the first wakes the child to read four bytes and sleep again: two more switches a task, where every
    core is busy.
    """
    processes = _processes(pool)
    if processes is None:
        return
    register = processes.register_with_event_loop

    def register_and_join(hub: Any) -> None:  # Celery makes its writer anew each time its consumer starts
        register(hub)
        _join(processes)

    processes.register_with_event_loop = register_and_join


def _join(processes: Any) -> None:
    send_job = processes._quick_put  # noqa: SLF001  # Celery has no public way; tests/worker/consumer/test_pool.py looks at it

    def send_whole_job(job: Any) -> None:
        send_job(job)
        sent = processes._cache[job[1][0]]  # noqa: SLF001
        header, body, size = sent._payload  # noqa: SLF001
        if len(header) + size <= ATOMIC:
            sent._payload = memoryview(bytes(header) + bytes(body)), NOTHING, 0  # noqa: SLF001

    processes._quick_put = send_whole_job  # noqa: SLF001


def _processes(pool: Any) -> Any:
    """Return Celery's AsynPool; None for threads and solo."""
    processes = getattr(pool, "_pool", None)
    return processes if hasattr(processes, "outbound_buffer") else None
