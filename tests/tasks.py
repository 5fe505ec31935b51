"""Tasks for tests: plain Celery, as anybody would write them."""

import os
import time
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery import chain, group, shared_task


@shared_task(name="tests.add")
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@shared_task(name="tests.echo")
def echo(value: Any) -> Any:
    """Return the value as it came."""
    return value


@shared_task(name="tests.become_chain", bind=True)
def become_chain(self: Any) -> Any:
    """Let a chain that ends in a group end in its place."""
    raise self.replace(chain(add.s(1, 2), group(add.s(1), add.s(1))))


@shared_task(name="tests.add_to_all", bind=True)
def add_to_all(self: Any, numbers: list[int], more: int) -> Any:
    """Let a group end in its place that adds to each number."""
    raise self.replace(group(add.s(number, more) for number in numbers))


@shared_task(name="tests.total")
def total(values: list[int]) -> int:
    """Add a list of numbers."""
    return sum(values)


@shared_task(name="tests.fail")
def fail(message: str = "as told") -> None:
    """Fail with a message."""
    raise ValueError(message)


@shared_task(name="tests.fail_with")
def fail_with(what: str) -> None:
    """Fail with an exception whose arguments are no plain JSON."""
    raise ERRORS[what]


#: What it fails with.
ERRORS: dict[str, Exception] = {
    "a UUID": KeyError(uuid.UUID(int=5)),
    "numbers and times": ValueError(Decimal("1.50"), date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, tzinfo=UTC), 1e16),
    "bytes": ValueError(b"\xff\x00", b"abc"),
    "NUL": ValueError("a\x00b", "\ud800"),
    "undecodable": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
}


@shared_task(name="tests.variables")
def variables() -> list[str]:
    """Tell the names of what a task's own process has in its environment."""
    return sorted(os.environ)


@shared_task(name="tests.sleep")
def sleep(seconds: float) -> float:
    """Take some time."""
    time.sleep(seconds)
    return seconds


@shared_task(name="tests.noted")
def noted(path: str, name: str, seconds: float = 0.0) -> None:
    """Write down when it began, take some time, and write down when it ended."""
    began = time.time()
    time.sleep(seconds)
    with Path(path).open("a") as notes:
        notes.write(f"{name} {began} {time.time()}\n")


@shared_task(name="tests.gated", bind=True)
def gated(self: Any, diary: str, gate: str) -> None:
    """Write down one's beginning, wait until a file exists, a minute at most, and write down one's end."""
    _write_down(diary, f"began {self.request.id} {os.getpid()}\n")
    deadline = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    _write_down(diary, f"ended {self.request.id} {os.getpid()}\n")


def _write_down(path: str, line: str) -> None:
    # One write at the file's end: lines of many processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@shared_task(name="tests.noop")
def noop() -> None:
    """Do nothing."""


@shared_task(name="tests.pid")
def pid() -> int:
    """Tell which process ran this."""
    return os.getpid()


@shared_task(name="tests.environment")
def environment() -> dict[str, str]:
    """Tell the worker's environment."""
    return dict(os.environ)


@shared_task(name="tests.large")
def large(size: int) -> str:
    """Return a text of so many characters."""
    return "x" * size


@shared_task(name="tests.quiet", ignore_result=True)
def quiet() -> int:
    """Return something nobody wants."""
    return 1


@shared_task(name="tests.flaky", bind=True, max_retries=5)
def flaky(self: Any, path: str, failures: int) -> int:
    """Fail so many times, counting in a file, then succeed with the number of runs."""
    file = Path(path)
    runs = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(runs))
    if runs <= failures:
        raise self.retry(countdown=0, exc=ValueError(f"run {runs}"))
    return runs


@shared_task(name="tests.report", bind=True)
def report(self: Any, path: str) -> str:
    """Report progress, then wait until a file exists."""
    self.update_state(state="HALFWAY", meta={"done": 1, "total": 2})
    while not Path(path).exists():
        time.sleep(0.05)
    return "done"


@shared_task(name="tests.length")
def length(value: str) -> int:
    """Tell how long a text is."""
    return len(value)


@shared_task(name="tests.strange")
def strange(what: str) -> Any:
    """Return what no outcome can hold."""
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    return {"an object": object(), "a deep nest": deep, "itself": endless, "a huge number": 10**5000}[what]
