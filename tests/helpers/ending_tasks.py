"""Tasks that end in every way a task can end; those that run more than once count their starts in a file."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Task, chain, chord, group, shared_task, states
from celery.exceptions import ChordError, Ignore, Reject, SoftTimeLimitExceeded

from howl.worker.task.artifacts import artifact


def _starts(path: str) -> int:
    """Count one start more."""
    with Path(path).open("a") as ledger:
        ledger.write("x")
    return len(Path(path).read_text())


def _note(path: str, line: str) -> None:
    with Path(path).open("a") as notes:
        notes.write(f"{line}\n")


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _miss_a_part() -> None:
    raise ChordError("a part is missing")


@shared_task(name="endings.echo")
def echo(value: Any = None) -> Any:
    """Return the value as it came."""
    return value


@shared_task(name="endings.total")
def total(values: list[int]) -> int:
    """Add a list of numbers."""
    return sum(values)


@shared_task(name="endings.make_chord")
def make_chord(parts: int) -> str:
    """Publish a chord, and tell its body's id."""
    return str(chord([echo.s(number) for number in range(parts)], total.s()).apply_async().id)


@shared_task(name="endings.replace_by_chord", bind=True)
def replace_by_chord(self: Task, parts: int) -> Any:
    """End as a chord does."""
    return self.replace(chord([echo.s(number) for number in range(parts)], total.s()))


@shared_task(name="endings.add")
def add(number: int, other: int) -> int:
    """Add two numbers."""
    return number + other


@shared_task(name="endings.length")
def length(_: Any, text: str) -> int:
    """Tell how long the text is that comes after the result of what was before."""
    return len(text)


@shared_task(name="endings.publish")
def publish(tasks: int) -> str:
    """Publish many tasks, on a queue that nobody serves."""
    for number in range(tasks):
        echo.apply_async((number,), queue="nobodys")
    return "done"


@shared_task(name="endings.replace_by", bind=True)
def replace_by(self: Task, number: int, kind: str) -> Any:
    """End as a canvas of that kind does."""
    parts = [echo.si(number), echo.si(number + 1)]
    canvas = {
        "chord": chord([add.si(number, -1), echo.si(number)], total.s()),
        "group": group(parts),
        "chain": chain(add.si(number, 1), add.s(1)),
    }
    return self.replace(canvas[kind])


@shared_task(name="endings.on_error")
def on_error(path: str, *_: Any) -> None:
    """Say which process looks after somebody else's error; it takes what Celery gives to those it runs on the spot."""
    Path(path).write_text(str(os.getpid()))


@shared_task(name="endings.add_to_chord", bind=True)
def add_to_chord(self: Task, *numbers: int) -> str:
    """Have the chord wait for echoes as well."""
    for number in numbers:
        self.add_to_chord(echo.si(number))
    return "added"


@shared_task(name="endings.note_old")
def note_old(task_id: str, path: str) -> None:
    """Look after somebody else's error as Celery's first error callbacks did, who know an id alone."""
    _note(path, f"old {task_id}")


@shared_task(name="endings.note_new")
def note_new(request: Any, exc: Exception, traceback: Any, path: str) -> None:
    """Look after somebody else's error as those do who know all of it."""
    _note(path, f"new {request.id} {type(exc).__name__} from {exc.__cause__!r}")


@shared_task(name="endings.fail")
def fail() -> None:
    """Fail."""
    raise ValueError("as told")


@shared_task(name="endings.fail_once")
def fail_once(path: str) -> str:
    """Fail at the first start."""
    if _starts(path) == 1:
        fail()
    return "done"


@shared_task(name="endings.change_mind", bind=True)
def change_mind(self: Any, state: str) -> str:
    """Call oneself something, and end well."""
    error = {"exc_type": "ValueError", "exc_message": ["not yet"], "exc_module": "builtins"}
    self.update_state(state=state, meta=error)
    return "done"


@shared_task(name="endings.wait")
def wait(begun: str, go_on: str) -> str:
    """Say that it began, and wait for a file."""
    _starts(begun)
    _wait_for(go_on)
    return "done"


@shared_task(name="endings.report", bind=True)
def report(self: Any) -> str:
    """Report a state of its own."""
    self.update_state(state="HALFWAY", meta={"done": 1})
    return "done"


@shared_task(name="endings.retry", bind=True, max_retries=1)
def retry(self: Any, countdown: float = 0) -> int:
    """Fail once, then succeed."""
    if self.request.retries == 0:
        raise self.retry(countdown=countdown, exc=ValueError("first"))
    return int(self.request.retries)


@shared_task(name="endings.quiet", ignore_result=True)
def quiet() -> int:
    """Return something nobody wants."""
    return 1


@shared_task(name="endings.quiet_failure", ignore_result=True)
def quiet_failure() -> None:
    """Fail, though nobody wants to know."""
    raise ValueError("quietly")


@shared_task(name="endings.quiet_retry", bind=True, ignore_result=True, max_retries=1)
def quiet_retry(self: Any) -> int:
    """Fail once, then return something nobody wants."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=ValueError("first"))
    return 1


@shared_task(name="endings.ignore")
def ignore() -> None:
    """End without an outcome."""
    raise Ignore


@shared_task(name="endings.replace", bind=True)
def replace(self: Any, value: int) -> Any:
    """Let another task of the same id end in its place."""
    raise self.replace(echo.s(value))


@shared_task(name="endings.fail_by_hand", bind=True)
def fail_by_hand(self: Any) -> None:
    """Say that it failed, and end without another outcome."""
    self.update_state(state=states.FAILURE, meta={"exc_type": "ByHand", "exc_message": ["so"], "exc_module": "tests"})
    raise Ignore


@shared_task(name="endings.reject")
def reject() -> None:
    """Reject the message for good."""
    raise Reject("not mine", requeue=False)


@shared_task(name="endings.requeue_once")
def requeue_once(path: str) -> int:
    """Reject the message once, for somebody else to take."""
    starts = _starts(path)
    if starts == 1:
        raise Reject("not now", requeue=True)
    return starts


@shared_task(name="endings.again", bind=True)
def again(self: Any, path: str, how: str) -> list[Any]:
    """Go back once, rejected or with the process; how often it started, and whether it knows of that."""
    starts, before = _starts(path), self.request.delivery_info["redelivered"]
    if starts == 1 and how == "rejected" and not before:
        raise Reject("not now", requeue=True)
    if starts == 1 and how == "lost" and not before:
        os.kill(os.getpid(), signal.SIGKILL)
    return [starts, before]


@shared_task(name="endings.soft_limit", soft_time_limit=0.5)
def soft_limit() -> None:
    """Take longer than its soft limit."""
    time.sleep(30)


@shared_task(name="endings.soft_limit_caught", soft_time_limit=2)
def soft_limit_caught() -> str:
    """Take longer than its soft limit, and end well."""
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "in time"
    return "too late"


@shared_task(name="endings.hard_limit", time_limit=1)
def hard_limit() -> None:
    """Take longer than its hard limit."""
    time.sleep(30)


@shared_task(name="endings.hard_limit_again", time_limit=3, acks_on_failure_or_timeout=False, acks_on_timeout=False)
def hard_limit_again(path: str) -> int:
    """Take longer than its hard limit, once, and run again."""
    starts = _starts(path)
    if starts == 1:
        time.sleep(30)
    return starts


@shared_task(name="endings.lost")
def lost(path: str, times: int = 1_000) -> int:
    """Take its process with it, so many times."""
    starts = _starts(path)
    if starts <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return starts


@shared_task(name="endings.lost_after_a_retry", bind=True, max_retries=1)
def lost_after_a_retry(self: Any) -> None:
    """Ask for a retry, and then take its process with it each time."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=ValueError("first"))
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="endings.exit")
def leave(path: str, times: int = 1_000) -> int:
    """End its process in an orderly way, so many times."""
    starts = _starts(path)
    if starts <= times:
        sys.exit(3)
    return starts


@shared_task(name="endings.lost_for_good", reject_on_worker_lost=False)
def lost_for_good() -> None:
    """Take its process with it; it is not to run again."""
    os.kill(os.getpid(), signal.SIGKILL)


class DiesAfterItsEnd(Task):
    """Its process dies between the storing of the end and Celery hearing of it; a base of Celery's, as people write."""

    abstract = True

    def on_success(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="endings.stored_then_lost", base=DiesAfterItsEnd)
def stored_then_lost(path: str) -> int:
    """Succeed, and then take the process along."""
    return _starts(path)


@shared_task(name="endings.early", acks_late=False)
def early(value: Any) -> Any:
    """Be acknowledged before it ends."""
    return value


@shared_task(name="endings.early_slow", acks_late=False)
def early_slow(begun: str, go_on: str) -> str:
    """Be acknowledged long before it ends."""
    _starts(begun)
    _wait_for(go_on)
    return "done"


@shared_task(name="endings.early_failure", acks_late=False)
def early_failure() -> None:
    """Be acknowledged before it fails."""
    raise ValueError("early")


@shared_task(name="endings.early_lost", acks_late=False)
def early_lost() -> None:
    """Be acknowledged before it takes its process with it."""
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="endings.fail_another", bind=True)
def fail_another(self: Any, task_id: str, go_on: str | None = None) -> str:
    """Store another task's failure, as Celery's backend does where it has no request to go by."""
    if go_on is not None:
        _starts(f"{go_on}.begun")
        _wait_for(go_on)
    self.backend.mark_as_failure(task_id, ValueError("not mine"))
    return "done"


@shared_task(name="endings.fail_a_body", bind=True)
def fail_a_body(self: Any, task_id: str) -> str:
    """Say that a chord's body cannot run, as Celery does where it finds out."""
    try:
        _miss_a_part()
    except ChordError as error:
        self.backend.chord_error_from_stack(total.s().set(task_id=task_id), exc=error)
    return "done"


@shared_task(name="endings.large")
def large() -> str:
    """Return more than an outcome may hold."""
    return "x" * (1 << 21)


@shared_task(name="endings.leave_bytes")
def leave_bytes(name: str, size: int) -> dict[str, Any]:
    """Leave so many random bytes behind."""
    return artifact(os.urandom(size), name)


@shared_task(name="endings.leave_text")
def leave_text(texts: list[str], name: str | None, media_type: str | None = None) -> list[dict[str, Any]]:
    """Leave texts behind, one after the other under the same name."""
    return [artifact(text.encode(), name, media_type) for text in texts]


@shared_task(name="endings.leave_trap")
def leave_trap(mark: str, names: list[str]) -> None:
    """Leave modules that leave a mark if they run, and settings that would have them run."""
    code = f"import os\nopen({mark!r}, 'a').write(f'{{__file__}} {{os.environ.get(\"HOWL_DATABASE_URL\")}}\\n')\n"
    for name in names:
        artifact((code if name.endswith(".py") else "HOWL_TASK_MODULES=helper\n").encode(), name)


@shared_task(name="endings.leave_file")
def leave_file(path: str, name: str | None = None) -> dict[str, Any]:
    """Leave a file behind that is there already."""
    return artifact(Path(path), name)


@shared_task(name="endings.leave_many")
def leave_many(sizes: list[int]) -> int:
    """Leave a file of each size, and then succeed or not."""
    return len([artifact(b"x" * size, f"{number}.bin") for number, size in enumerate(sizes)])


@shared_task(name="endings.leave_and_fail")
def leave_and_fail() -> None:
    """Leave a file and fail."""
    artifact(b"why", "why.txt")
    raise ValueError("as told")


@shared_task(name="endings.leave_and_retry", bind=True, max_retries=1)
def leave_and_retry(self: Any) -> int:
    """Leave a file, and when tried again, another of its name."""
    artifact(f"attempt {self.request.retries + 1}".encode(), "log.txt")
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return self.request.retries
