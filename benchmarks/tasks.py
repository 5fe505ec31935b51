"""What the benchmarks run: the same plain Celery tasks for every contender."""

import time

from celery import shared_task


@shared_task(name="bench.noop")
def noop() -> None:
    """Do nothing."""


@shared_task(name="bench.sleep")
def sleep(seconds: float) -> None:
    """Take some time without using the processor."""
    time.sleep(seconds)
