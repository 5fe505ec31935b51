"""Tasks that tell how far they are, and a worker that writes down what of it reaches its parent."""

import os
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.signals import worker_ready

from howl.worker.task.context import log, progress
from howl.worker.task.reporter import PACE

#: Names the file, one event a line.
SEEN = "SIGHTS_SEEN"


@worker_ready.connect
def _write_down(sender: Any, **_: Any) -> None:
    if SEEN in os.environ:
        descriptor = os.open(os.environ[SEEN], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        # One write an event: it may come from several threads.
        sender.controller.howl_outbox.collector.show = lambda document: os.write(descriptor, document + b"\n")


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@shared_task(name="sights.tell")
def tell() -> str:
    """Tell something and end at once."""
    progress(1, 2, "half")
    log("first")
    progress(2, 2)
    log("last")
    return "done"


@shared_task(name="sights.tell_and_wait")
def tell_and_wait(go_on: str) -> None:
    """Tell something, then something newer, and say no more until a file is there."""
    log("first")
    time.sleep(0.02)
    for done in range(1, 101):
        progress(done, 100)
        log(f"line {done}")
    _wait_for(go_on)


@shared_task(name="sights.ignored")
def ignored() -> None:
    """Tell something, and end without an outcome."""
    log("told")
    raise Ignore


@shared_task(name="sights.failed")
def failed() -> None:
    """Tell something, and fail."""
    log("told")
    raise ValueError("as told")


class TellsAfterwards(Task):
    """Tells more when its end is stored."""

    abstract = True

    def on_success(self, *_: Any) -> None:
        log("afterwards")


@shared_task(name="sights.afterwards", base=TellsAfterwards)
def afterwards() -> None:
    """Tell something, and something more when the end is stored."""
    log("told")


@shared_task(name="sights.flood")
def flood(seconds: float) -> int:
    """Print as fast as it goes, many lines however slow that is, and tell how many it was."""
    deadline, lines = time.monotonic() + seconds, 0
    while time.monotonic() < deadline or lines <= 10_000:
        lines += 1
        log(f"line {lines}{' and so on' * 30}")
        progress(lines)
    return lines


@shared_task(name="sights.mumble")
def mumble(name: str, times: int) -> None:
    """Tell one's own name, again and again."""
    for number in range(times):
        log(f"{name} {number}")
        progress(number + 1, times, name)
        time.sleep(0.002)


@shared_task(name="sights.whole")
def whole(go_on: str) -> None:
    """Have a part applied on the spot, call another as a function, and leave a third to a thread."""
    part.apply(("applied",))
    part("called")
    thread = threading.Thread(target=copy_context().run, args=(log, "thread"))
    thread.start()
    thread.join()
    _wait_for(go_on)
    log("whole")


@shared_task(name="sights.leave_a_thread")
def leave_a_thread(go_on: str, told: str) -> None:
    """Leave a thread behind, which tells something when the task has ended."""

    def speak() -> None:
        _wait_for(go_on)
        deadline = time.monotonic() + 3 * PACE
        while time.monotonic() < deadline:
            log("too late")
            time.sleep(0.02)
        Path(told).touch()

    threading.Thread(target=copy_context().run, args=(speak,), daemon=True).start()


@shared_task(name="sights.part")
def part(line: str) -> None:
    """Tell a line."""
    log(line)


@shared_task(name="sights.interrupted", soft_time_limit=2)
def interrupted() -> str:
    """Tell without a pause until the soft time limit strikes, and then once more."""
    number = 0
    try:
        while True:
            number += 1
            log("x" * 1000)
            progress(number)
    except SoftTimeLimitExceeded:
        log("interrupted")
    return "in time"


@shared_task(name="sights.endless", time_limit=20)
def endless() -> None:
    """Tell without an end; whoever cancels it ends its process."""
    while True:
        log("x" * 1000)
