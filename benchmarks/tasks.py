"""Tasks of the benchmarks: the same plain Celery tasks for every contender."""

import os
import time
from typing import Any

from celery import shared_task

from howl.worker.task.context import progress


@shared_task(name="bench.noop")
def noop() -> None:
    """Do nothing."""


@shared_task(name="bench.clock")
def clock() -> float:
    """The Unix time at which this task ends."""
    return time.time()


@shared_task(name="bench.sleep")
def sleep(seconds: float) -> None:
    """Take some time without using the processor."""
    time.sleep(seconds)


@shared_task(name="bench.report")
def report(times: int, pause: float) -> None:
    """Say how far it is, noting the time, with a pause of so many seconds after each."""
    for number in range(times):
        progress(number, times, repr(time.time()))
        time.sleep(pause)


@shared_task(name="bench.diary", bind=True)
def diary(self: Any, path: str, seconds: float) -> None:
    """Take some time, and write down one's beginning and end."""
    write_down(path, f"began {self.request.id} {os.getpid()}\n")
    time.sleep(seconds)
    write_down(path, f"ended {self.request.id} {os.getpid()}\n")


def write_down(path: str, line: str) -> None:
    """Append a line to a diary that many processes write."""
    # One write in append mode: lines of different processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
