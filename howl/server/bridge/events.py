"""Validate workers' events: anyone with a worker's credential may send anything, and Flower trusts all of it.

Times are corrected to NATS's clock: by the worker's clock when it sent, against the time NATS received the message.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from howl.node_names import node_name_of, worker_id_of
from howl.server.bridge.presence import Described, Sighting
from howl.server.storable import storable

logger = logging.getLogger(__name__)

#: Maximum plausible age of an event when its message is received, in seconds.
OLDEST = 86_400.0
#: Maximum characters of an id, of a text, of a line, and of all lines of an event.
ID_LIMIT, TEXT_LIMIT, LINE_LIMIT, LINES_LIMIT = 255, 20_000, 2_000, 65_536
#: The limit below which every JSON reader represents whole numbers exactly.
NUMBER_LIMIT = 2**53
#: Maximum characters of a logged reason, which may quote what a worker wrote.
REASON_LIMIT = 200
#: A message id: the worker's boot_id and the number of its message.
MESSAGE_ID = re.compile(r"[A-Za-z0-9]{1,32}\.[0-9]{1,12}")
#: Maximum log lines about bad messages per period, and the period in seconds.
LINES, PERIOD = 20, 60.0


class Letter(NamedTuple):
    """A message as stored by NATS."""

    subject: str
    data: bytes
    #: The worker's clock when it sent the message, as reported by it: unix seconds.
    sent: str | None
    #: The time at which NATS received it, in unix nanoseconds, and its sequence in the stream.
    nanoseconds: int
    sequence: int
    #: The sender's id for it, the same when it is sent again.
    message_id: str = ""

    @property
    def source(self) -> str:
        """The key of the message in the record, the same if it was sent twice."""
        if MESSAGE_ID.fullmatch(self.message_id):
            return f"nats:{self.subject.rpartition('.')[2]}:{self.message_id}"
        return f"nats:{self.nanoseconds}.{self.sequence}"

    @property
    def taken_at(self) -> datetime:
        return datetime.fromtimestamp(self.nanoseconds / 1e9, UTC)


class Happening(NamedTuple):
    """An event of a task with its time corrected and only the fields known for its type."""

    event: dict[str, Any]
    worker_id: str
    #: Unix seconds.
    at: float
    letter: Letter
    #: Its index in the message.
    place: int
    #: The credential whose HOWL_RECORD_LIMIT it counts against.
    credential: str


class Heard(NamedTuple):
    """Events of workers and of tasks, in message order."""

    sightings: list[Sighting]
    happenings: list[Happening]


class Complaints:
    """Logs a line per bad message, at a limited rate."""

    def __init__(self) -> None:
        self.said, self.unsaid, self.since = 0, 0, -PERIOD

    def __call__(self, subject: str, why: str) -> None:
        now = time.monotonic()
        if now - self.since >= PERIOD:
            if self.unsaid:
                logger.error("%d more messages were ignored, or in part.", self.unsaid)
            self.said, self.unsaid, self.since = 0, 0, now
        if self.said >= LINES:
            self.unsaid += 1
            return
        self.said += 1
        logger.error("Event on %.200s ignored: %s.", _one_line(subject), why)


def read(
    letters: Iterable[Letter], complain: Callable[[str, str], None], unwanted: frozenset[str] = frozenset()
) -> Heard:
    """Return the valid events; for each message, report the first fault to `complain` with the message's subject.

    Events of `unwanted` types are skipped unread.
    """
    heard = Heard([], [])
    for letter in letters:
        why = _read(letter, heard, unwanted)
        if why is not None:
            complain(letter.subject, why)
    return heard


def _read(letter: Letter, heard: Heard, unwanted: frozenset[str]) -> str | None:
    """Add the valid events of one message to `heard`; return its first fault, if any."""
    try:
        events, credential = json.loads(letter.data), _credential(letter.subject)
    except (ValueError, RecursionError) as error:
        return _why(error)
    problem, when = None, _clock(letter)
    for index, event in enumerate(events if isinstance(events, list) else [events]):
        if unwanted and _is_of(event, unwanted):
            continue
        try:
            _sort(event, letter, index, credential, when, heard)
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is one
            problem = problem or _why(error)
    return problem


def _is_of(event: Any, types: frozenset[str]) -> bool:
    kind = event.get("type") if isinstance(event, dict) else None
    return isinstance(kind, str) and kind in types


def _sort(event: Any, letter: Letter, index: int, credential: str, when: Callable[[Any], float], heard: Heard) -> None:
    if not isinstance(event, dict):
        raise ValueError("an event is no JSON object")  # noqa: TRY004  # bad input, no bug
    kind = event.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError("no type of event that is known")
    if kind.startswith("worker-"):
        heard.sightings.append(_sighting(event, letter, credential, when))
        return
    worker_id = _sender(event.get("hostname"))
    at = when(event.get("timestamp"))
    clean = _clean(event, kind, at) | {"uuid": _id(event.get("uuid"), "uuid")}
    heard.happenings.append(Happening(clean, worker_id, at, letter, index, credential))


def _sighting(event: dict[str, Any], letter: Letter, credential: str, when: Callable[[Any], float]) -> Sighting:
    described = Described.model_validate(storable(event.get("worker")))
    node_name = event.get("hostname", node_name_of(described.worker_id))
    if _sender(node_name) != described.worker_id:
        raise ValueError("worker.worker_id: not the worker whose node name this is")
    clean = _clean(event | {"hostname": node_name}, event["type"], when(event.get("timestamp")))
    return Sighting(described, letter.taken_at, clean, credential)


def _clean(event: dict[str, Any], kind: str, at: float) -> dict[str, Any]:
    """Return the event's known fields, checked, without `utcoffset` and `clock`.

    Receivers would shift the time and their clocks by these; without them, they take time and order as they come.
    """
    clean = {"type": kind, "hostname": event["hostname"], "timestamp": at}
    for name, check in FIELDS[kind]:
        if name in event:
            clean[name] = check(event[name], name)
    if not NEEDED.get(kind, NOTHING) <= clean.keys():
        raise ValueError(f"{min(NEEDED[kind] - clean.keys())}: missing")
    return clean


def _credential(subject: str) -> str:
    """Return the credential in `<prefix>.events.<credential>`, which NATS has verified."""
    parts = subject.split(".")
    if len(parts) != 3:
        raise ValueError("its subject has not the form of a worker's event")
    return parts[2]


def _sender(node_name: Any) -> str:
    return worker_id_of(_id(node_name, "hostname"))


def _clock(letter: Letter) -> Callable[[Any], float]:
    """Return the map from worker to NATS time, in unix seconds: at most OLDEST before receipt, never after."""
    taken = letter.nanoseconds / 1e9
    try:
        sent = float(letter.sent or "nan")
    except ValueError:
        sent = math.nan
    if not math.isfinite(sent):
        return lambda _: taken
    error = taken - sent

    def when(stated: Any) -> float:
        # Comparing a number that is not finite, or too large for a float, is safe; adding to it is not.
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not abs(stated) < NUMBER_LIMIT:
            raise ValueError("timestamp: no time")
        return min(max(stated + error, taken - OLDEST), taken)

    return when


def _id(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= ID_LIMIT or not value.isprintable():
        raise ValueError(f"{name}: no name of at most {ID_LIMIT} characters")
    return value


def _text(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: no text")  # noqa: TRY004  # bad input, no bug
    return _clipped(value, TEXT_LIMIT)


def _number(value: Any, name: str) -> float | None:
    if value is None or value is True or value is False:
        return value
    if not isinstance(value, int | float) or not abs(value) < NUMBER_LIMIT:
        raise ValueError(f"{name}: no number")
    return value


def _real(value: Any, name: str) -> float:
    number = _number(value, name)
    if number is None or isinstance(number, bool):
        raise ValueError(f"{name}: no number")
    return number


def _loads(value: Any, name: str) -> list[float]:
    """Check loads of 1, 5 and 15 minutes."""
    if not isinstance(value, list) or len(value) > 3:
        raise ValueError(f"{name}: not three numbers")
    return [_real(load, name) for load in value]


def _scalar(value: Any, name: str) -> Any:
    return _text(value, name) if isinstance(value, str) else _number(value, name)


def _lines(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError(f"{name}: no list of lines")
    kept, room = [], LINES_LIMIT
    for line in value:
        kept.append(_clipped(line, min(LINE_LIMIT, room)))
        room -= len(kept[-1]) + 1
        if room <= 0:
            break
    return kept


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: max(limit - 1, 0)]}…"


Check = Callable[[Any, str], Any]


def _fields(**checks: Check) -> tuple[tuple[str, Check], ...]:
    return (("pid", _number), *checks.items())


_WORKER = _fields(
    freq=_real, active=_number, processed=_number, loadavg=_loads, sw_ident=_text, sw_ver=_text, sw_sys=_text
)
_ERROR = _fields(exception=_text, traceback=_text)
#: Fields passed on for each type: Celery's (docs.celeryq.dev, "Monitoring and Management Guide") and HOWL's.
FIELDS: dict[str, tuple[tuple[str, Check], ...]] = {
    "worker-online": _WORKER,
    "worker-heartbeat": _WORKER,
    "worker-offline": _WORKER,
    "task-received": _fields(
        name=_text, args=_text, kwargs=_text, retries=_number, eta=_text, expires=_text, root_id=_text,
        parent_id=_text, exchange=_text, routing_key=_text, queue=_text,
    ),
    "task-started": _fields(),
    "task-succeeded": _fields(result=_text, runtime=_number),
    "task-failed": _ERROR,
    "task-retried": _ERROR,
    "task-revoked": _fields(terminated=_number, signum=_scalar, expired=_number),
    "task-rejected": _fields(requeue=_number),
    "task-progress": _fields(done=_real, total=_number, note=_text, number=_number),
    "task-log": _fields(lines=_lines, dropped=_number, number=_number),
}  # fmt: skip
NOTHING: frozenset[str] = frozenset()
#: Required fields: without them `celery events` ends with an error, and a row is of no use.
NEEDED = {
    "task-received": frozenset(("name", "args", "kwargs")),
    "task-progress": frozenset(("done",)),
    "task-log": frozenset(("lines",)),
}


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(str(part) for part in problem['loc']) or 'worker'}: {problem['msg']}"
    else:
        reason = str(error) or type(error).__name__
    return _one_line(reason)


def _one_line(text: str) -> str:
    return " ".join(text[:REASON_LIMIT].split())
