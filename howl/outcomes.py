"""How a task's run ended, and its form in the outcomes stream: one JSON document per entry.

Workers write entries, the server's recorder reads them. They come from machines that are not trusted, so reading
checks everything: field names, types, lengths.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeGuard

from kombu.exceptions import EncodeError
from kombu.utils import json

from howl.bounded_json import parsed_size
from howl.errors import ChordRefused, TaskDied, UnreadableOutcome

#: The one field of a stream entry.
ENTRY_FIELD = b"outcome"

#: A task's status and rank by Celery's state: within one attempt a row only moves to a higher rank. A state that is
#: not here is custom, or Celery's PENDING, which is no step: both are progress. A row that an outcome could make
#: "queued" would be pushed by maintenance, whoever had written the outcome.
STATUSES: dict[str, tuple[str, int]] = {
    "STARTED": ("started", 1),
    # A message was processed and its run stored nothing: it was ignored, or replaced by another of the same id.
    "ENDED": ("started", 1),
    "RETRY": ("retrying", 2),
    "SUCCESS": ("succeeded", 3),
    "FAILURE": ("failed", 3),
    "REVOKED": ("cancelled", 3),
    "DEAD": ("dead", 3),
}
#: State of our own: the run was broken off, and its message is back on its queue.
REQUEUED = "REQUEUED"
FINAL_STATUSES = ("succeeded", "failed", "cancelled", "expired", "dead")
FINAL_RANK = 3
#: Celery's state by status, for its clients.
STATES = {
    "queued": "PENDING",
    "started": "STARTED",
    "retrying": "RETRY",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "REVOKED",
    "expired": "REVOKED",
    "dead": "FAILURE",
}

#: Headers of a chord's body that is to run even if parts fail (`body.set(headers=JOIN_ALL)`). For a part without a
#: result it receives an object with the part's status under the name PART_STATUS, worker_id, error_type and
#: error_message.
JOIN_ALL = {"howl_join": "all"}
PART_STATUS = "howl_status"

#: Most characters of an id or name; Celery's own ids have 36.
NAME_LIMIT = 255
#: Most parts of a chord; most bytes of its document, which is sent in pieces, and of its memory when parsed.
PARTS_LIMIT, CHORD_LIMIT, CHORD_PARSED_LIMIT = 100_000, 16 << 20, 128 << 20
HEX = re.compile(r"[0-9a-f]+")
#: In the place of an attempt's number: the last one that is on record, or the first.
LATEST_ATTEMPT = 0
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One step of one task: it started, reported, asked for a retry, or ended."""

    task_id: str
    state: str
    #: The worker's clock, ISO 8601.
    at: str
    #: Celery's retries plus one; LATEST_ATTEMPT where whoever reports an end does not know it.
    attempt: int = 1
    result: Any = None
    traceback: str | None = None
    name: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    queue: str | None = None
    worker_id: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    group_id: str | None = None
    children: list[Any] | None = None
    #: Number of tasks that it started and that `children` leaves out, because there were too many.
    children_left_out: int | None = None
    #: Seconds by the worker's clock.
    runtime: float | None = None
    #: The process that ran it, on the worker's machine.
    pid: int | None = None

    @property
    def status(self) -> str | None:
        """The task's status in its row; None for a custom state, which is progress."""
        if self.state == "REVOKED" and _reason(self.result) == "expired":
            return "expired"
        return STATUSES[self.state][0] if self.state in STATUSES else None

    @property
    def rank(self) -> int:
        return STATUSES[self.state][1]

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, kw_only=True)
class ChordCreated:
    """A chord that was published: when every part has ended, its body is due."""

    group_id: str
    #: Ids of the tasks that must end.
    parts: list[str] = field(default_factory=list)
    #: Celery's `as_tuple()` of the header's result: the shape in which the body expects the parts' values.
    header: list[Any] = field(default_factory=list)
    #: Celery's signature of the body.
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ChordPiece:
    """One of the pieces in which a large chord is reported: together they are the document of its ChordCreated."""

    group_id: str
    #: From 0 on.
    number: int
    pieces: int
    text: str


@dataclass(frozen=True, kw_only=True)
class PartsAdded:
    """Parts that a part of a chord published, for which the body waits as well (`self.add_to_chord`)."""

    group_id: str
    #: The part that added them.
    task_id: str
    parts: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ArtifactKept:
    """A file that a task produced: JetStream has all of it, as object `artifact_id` of the artifacts' bucket."""

    task_id: str
    artifact_id: str
    name: str
    media_type: str
    #: Bytes.
    size: int
    #: Hexadecimal.
    sha256: str
    #: The worker's clock, ISO 8601.
    at: str
    #: Celery's retries plus one.
    attempt: int = 1
    worker_id: str | None = None


Entry = Outcome | ChordCreated | ChordPiece | PartsAdded | ArtifactKept

KINDS: dict[str, type[Entry]] = {
    "outcome": Outcome, "chord": ChordCreated, "chord piece": ChordPiece, "parts added": PartsAdded,
    "artifact": ArtifactKept,
}  # fmt: skip
_KIND_OF = {made: kind for kind, made in KINDS.items()}

#: One encoder for all calls: kombu's `dumps` makes a new one each time.
_ENCODER = json.JSONEncoder()


def encode(entry: Entry) -> bytes:
    """Encode an entry for the stream; raises kombu's EncodeError when a value is not JSON."""
    # `vars`, because `dataclasses.asdict` copies deeply, and results may be large.
    document = {
        "kind": _KIND_OF[type(entry)],
        **{name: value for name, value in vars(entry).items() if value is not None},
    }
    try:
        return _ENCODER.encode(document).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"The outcome is not JSON: {error}") from None


def in_pieces(chord: ChordCreated, limit: int) -> Iterator[ChordCreated | ChordPiece]:
    """Yield a chord in entries of at most about `limit` bytes; raises ChordRefused or EncodeError."""
    document = encode(chord)
    if len(chord.parts) > PARTS_LIMIT:
        raise ChordRefused(f"The chord has {len(chord.parts):,} parts, and {PARTS_LIMIT:,} are allowed: make several.")
    if len(document) <= limit:
        yield chord
        return
    if len(document) > CHORD_LIMIT or parsed_size(document) > CHORD_PARSED_LIMIT:
        raise ChordRefused(
            f"The chord has {len(document):,} bytes with its body's arguments, and {CHORD_LIMIT:,} are allowed, or "
            "fewer of many small values: write a file and pass where it is."
        )
    # Encoding the text as JSON again puts, at worst, a backslash before each character.
    text, size = document.decode(), limit // 2
    cuts = range(0, len(text), size)
    for number, cut in enumerate(cuts):
        yield ChordPiece(group_id=chord.group_id, number=number, pieces=len(cuts), text=text[cut : cut + size])


def decode(document: Any) -> Entry:
    """Return an entry of the outcomes stream from its parsed JSON; raises UnreadableOutcome saying what is wrong."""
    if not isinstance(document, dict):
        raise UnreadableOutcome("it is not a JSON object")
    given = dict(document)
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnreadableOutcome(f"its kind is none of {', '.join(KINDS)}")
    try:
        entry = KINDS[kind](**given)
    except TypeError as error:  # a field too many or too few
        raise UnreadableOutcome(str(error).split(") ", 1)[-1]) from None
    _check(entry)
    return entry


#: Types of each field; None is also allowed where the dataclass has None as default.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "task_id": str, "state": str, "at": str, "attempt": int, "traceback": str, "name": str, "args": list,
    "kwargs": dict, "queue": str, "worker_id": str, "parent_id": str, "root_id": str, "group_id": str,
    "children": list, "runtime": (int, float), "pid": int, "parts": list, "header": list, "body": dict,
    "artifact_id": str, "media_type": str, "size": int, "sha256": str, "children_left_out": int, "number": int,
    "pieces": int, "text": str,
}  # fmt: skip
_REQUIRED = (
    "number",
    "pieces",
    "text",
    "task_id",
    "state",
    "at",
    "attempt",
    "parts",
    "header",
    "body",
    "artifact_id",
    "media_type",
    "size",
    "sha256",
)
_NAMES = ("task_id", "state", "name", "queue", "worker_id", "parent_id", "root_id", "group_id", "media_type")
#: NUL and lone surrogates: refused in an id, because replacing them could make two ids equal.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _check(entry: Entry) -> None:
    for name, value in vars(entry).items():
        if value is None and name not in _REQUIRED and not (name == "name" and isinstance(entry, ArtifactKept)):
            continue
        if name in _TYPES and not _fits(name, value):
            raise UnreadableOutcome(f"its field {name} has a wrong type")
        if name in _NAMES and not 0 < len(value) <= NAME_LIMIT:
            raise UnreadableOutcome(f"its field {name} is empty or longer than {NAME_LIMIT} characters")
        if name in _NAMES and UNSTORABLE.search(value):
            raise UnreadableOutcome(f"its field {name} has characters that PostgreSQL cannot hold")
    if isinstance(entry, ChordCreated | ChordPiece | PartsAdded):
        _check_chord(entry)
    else:
        _check_numbers(entry)
    if isinstance(entry, ArtifactKept):
        _check_artifact(entry)


def is_id(value: Any) -> TypeGuard[str]:
    """Return whether this can be recorded as a task's id, or as another name."""
    return isinstance(value, str) and 0 < len(value) <= NAME_LIMIT and not UNSTORABLE.search(value)


def is_plain_id(task_id: str) -> bool:
    """Return whether a task's id has the form that HOWL and Celery make; other ids may be anything a worker wrote."""
    return bool(UUID.fullmatch(task_id))


def in_command(task_id: str) -> str:
    """Return a task's id for a command that people copy; `ID` for one that is not plain."""
    return task_id if is_plain_id(task_id) else "ID"


def _fits(name: str, value: Any) -> bool:
    return isinstance(value, _TYPES[name]) and not isinstance(value, bool)


def _check_chord(chord: ChordCreated | ChordPiece | PartsAdded) -> None:
    if isinstance(chord, ChordPiece):
        if not 0 <= chord.number < chord.pieces <= CHORD_LIMIT:
            raise UnreadableOutcome("its number is none of its chord's pieces")
    elif len(chord.parts) > PARTS_LIMIT:
        raise UnreadableOutcome(f"it has {len(chord.parts):,} parts, and {PARTS_LIMIT:,} are allowed")
    elif not all(map(is_id, chord.parts)):
        raise UnreadableOutcome("its parts are not all ids of tasks")


def _check_artifact(artifact: ArtifactKept) -> None:
    if fault := name_fault(artifact.name):
        raise UnreadableOutcome(f"its file's name {fault}")
    digests = (artifact.artifact_id, 32), (artifact.sha256, 64)
    if not all(len(text) == length and HEX.fullmatch(text) for text, length in digests):
        raise UnreadableOutcome("its artifact_id or sha256 is none")
    if not MEDIA_TYPE.fullmatch(artifact.media_type) or not 0 <= artifact.size < 2**63:
        raise UnreadableOutcome("its media_type or size is none")


def _check_numbers(entry: Outcome | ArtifactKept) -> None:
    if isinstance(entry, Outcome) and not 0 <= (entry.children_left_out or 0) < 2**31:
        raise UnreadableOutcome("its number of children is none")
    first = LATEST_ATTEMPT if isinstance(entry, Outcome) else 1
    if not first <= entry.attempt < 2**31:
        raise UnreadableOutcome("its attempt is no number of one")
    try:
        moment = datetime.fromisoformat(entry.at)
    except ValueError:
        raise UnreadableOutcome("its time is not ISO 8601") from None
    if moment.tzinfo is None:
        raise UnreadableOutcome("its time has no zone")


def _reason(result: Any) -> Any:
    """Return the first argument of an exception as Celery prepares it."""
    arguments = result.get("exc_message") if isinstance(result, dict) else None
    return arguments[0] if isinstance(arguments, list | tuple) and arguments else arguments


def name_fault(name: str) -> str | None:
    """Return what is wrong with an artifact's name, which must be a plain file name in any folder; None if nothing."""
    if fault := path_fault(name):
        return fault
    if name[0] in ".-":
        return "begins with a dot or a hyphen, so that programs take it for settings or an option"
    if name != name.strip() or name.endswith("."):
        return "begins with a space, or ends with one or with a dot, which file systems drop"
    return None


def path_fault(name: str) -> str | None:
    """Return why a file cannot be written under this name; None if it can."""
    if not name.strip():
        return "is empty"
    if not name.isprintable():  # a lone surrogate is not
        return "has control characters, or others that no screen shows"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "leads to another folder"
    return f"is longer than {NAME_LIMIT} bytes" if len(name.encode()) > NAME_LIMIT else None


#: Error type that Celery stores for a task that its worker does not know.
UNREGISTERED = "celery.exceptions.NotRegistered"


def failure(task_id: str, state: str, error: Exception) -> Outcome:
    """Return the outcome of a task for which no run could store one, with the error as Celery prepares it."""
    result = {"exc_type": type(error).__name__, "exc_message": list(error.args), "exc_module": type(error).__module__}
    now = datetime.now(UTC).isoformat()
    return Outcome(task_id=task_id, state=state, at=now, result=result, attempt=LATEST_ATTEMPT)


def died(task_id: str, times: int) -> Outcome:
    """Return the outcome of a dead letter: more than `times` runs of the task did not end."""
    why = (
        f"None of its {times + 1} runs came to its end, for its process or its worker died, or its worker left before: "
        "see its log, give it a time limit or its workers a longer --runtime, and then use `howl tasks retry`."
    )
    return failure(task_id, "DEAD", TaskDied(why))


def requeued(task_id: str, worker_id: str) -> Outcome:
    """Return the outcome of a run that was broken off on this worker: its message is back on its queue."""
    return Outcome(task_id=task_id, state=REQUEUED, at=datetime.now(UTC).isoformat(), worker_id=worker_id)


def error_of(outcome: Outcome) -> tuple[str, str] | None:
    """Return (type, message) of a failed, retried or revoked run, from the exception as Celery prepares it."""
    if outcome.state not in ("FAILURE", "RETRY", "REVOKED", "DEAD") or not isinstance(outcome.result, dict):
        return None
    module, name = outcome.result.get("exc_module"), outcome.result.get("exc_type")
    qualified = f"{module}.{name}" if module and module != "builtins" else str(name)
    arguments = unmarked(outcome.result.get("exc_message"))
    told = ", ".join(map(str, arguments)) if isinstance(arguments, list | tuple) else str(arguments or "")
    if qualified == UNREGISTERED:  # its one argument is the task's name
        return qualified, (
            f"The worker that took it does not know the task {told}: have the workers of its queue load the module "
            "that has it (HOWL_TASK_MODULES), or name a queue whose workers do."
        )
    return qualified, told


def unmarked(value: Any) -> Any:
    """Restore dates, UUIDs, decimals and bytes, which Celery's JSON writes as marked objects.

    A marked object that is not valid was not written by Celery; then the whole value is returned unchanged.
    """
    try:
        return json.loads(json.dumps(value))
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, EncodeError):
        return value
