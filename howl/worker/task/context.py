"""The functions for authors of tasks: report progress and log lines of a running task, and leave a file behind."""

from numbers import Integral, Real

from howl.worker.task.artifacts import artifact
from howl.worker.task.lines import LINE, clean, clip
from howl.worker.task.reporter import current

__all__ = ["artifact", "log", "progress"]

#: The largest number that every reader of JSON holds exactly, and most characters of a note.
MOST = 2**53
NOTE = 200


def progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Report how far the running task is: `done` of `total` (in whatever unit you count), and what it is doing.

    Call it as often as you like, in the tightest loop: the first call is shown at once, then the newest four times a
    second, and the last one always. `total` may be left out when it is unknown, and may change. A note is one line
    of at most 200 characters; longer ones are clipped.

    Outside a worker (in a test, in a task called as a function) it does nothing.
    Raises TypeError if `done` or `total` is not a number, or `note` not a text; ValueError if a number is negative, NaN
    or above 2**53.
    """
    done = _number("done", done)
    total = None if total is None else _number("total", total)
    note = None if note is None else _note(note)
    sight = current.get()
    if sight is not None and not sight.is_over:
        sight.tell_progress((done, total, note))


def log(line: object) -> None:
    """Show a line of the running task's log, or each line of a text with several.

    Bytes are read as UTF-8, anything else becomes a text as with `print`. Lines are clipped at 2,000 characters, and
    what cannot be shown becomes U+FFFD. A carriage return starts its line over, as on a terminal.

    Call it as often as you like: the first line is shown at once, then what is new four times a second. A run may show
    256 KiB at once and 16 KiB a second from then on; of more, the newest lines are shown, with how many were left out.

    Outside a worker (in a test, in a task called as a function) it does nothing.
    """
    sight = current.get()
    if sight is not None and not sight.is_over:
        sight.tell_lines(line if isinstance(line, str) else _text(line))


def _number(name: str, value: object) -> float:
    """Return a number as JSON knows it; NumPy's and the like are numbers too."""
    if type(value) is not int and type(value) is not float:  # nearly always one of these, and this must be cheap
        value = _converted(name, value)
    if not 0 <= value <= MOST:  # NaN fails this too
        raise ValueError(f"{name} must be a number from 0 to 2**53.")
    return value


def _converted(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}.")
    return int(value) if isinstance(value, Integral) else float(value)


def _note(note: object) -> str:
    if not isinstance(note, str):
        raise TypeError(f"note must be a text, not {type(note).__name__}.")
    if len(note) <= NOTE and note.isprintable():
        return note
    return clip(clean(" ".join(note[:LINE].split())), NOTE)


def _text(line: object) -> str:
    return bytes(line).decode("utf-8", "replace") if isinstance(line, bytes | bytearray) else str(line)
