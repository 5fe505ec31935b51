"""Chords: the parts are counted in the record, and the body is submitted when the last of them has ended.

Each chord waits for the first of its parts that has not ended, and is not checked before that one has. So its total
cost is proportional to its size, however many outcomes are recorded meanwhile.
"""

import json
import logging
import time
from collections.abc import Iterable
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import DataError, RedisError
from sqlalchemy import ColumnElement, Select, Text, any_, cast, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError as DatabaseError
from sqlalchemy.orm import Session

from howl.broker import set_aside
from howl.config import Settings
from howl.connections.postgres import session
from howl.errors import ChordExpired, ChordRefused
from howl.models import Chord, StoredPiece, Task
from howl.outcomes import FINAL_RANK, PARTS_LIMIT, ChordCreated, PartsAdded
from howl.server.chords import bodies

logger = logging.getLogger(__name__)

#: Maximum chords checked in one call, and seconds after which no further one is begun.
AT_ONCE, LONGEST = 100, 1.0
#: Parts that are checked first, and at most at once: usually the next one is still running.
FIRST_PORTION, PORTION = 100, 10_000
#: Maximum waiting chords of one credential, and parts of all of these.
WAITING_CHORDS, WAITING_PARTS = 10_000, 1_000_000
#: Maximum rows that one statement deletes.
DELETED_AT_ONCE = 1000
#: Plain text, because SQLAlchemy takes longer to build a statement than PostgreSQL to answer this one.
ANY_WAIT = text("SELECT EXISTS (SELECT FROM chords WHERE body_submitted_at IS NULL)")
#: Inserts parts behind the part that added them, and among those not known to have ended.
ADD = text(
    "UPDATE chords SET size = size + :number,"
    " parts = parts[1 : place] || CAST(:added AS text[]) || parts[place + 1 : size] FROM ("
    " SELECT chord_id AS found, greatest(array_position(parts, :part), ended) AS place FROM chords"
    " WHERE group_id = :group_id AND body_submitted_at IS NULL AND :part = ANY (parts)"
    " AND size + :number <= :limit AND NOT parts && CAST(:added AS text[]) FOR UPDATE) AS its"
    " WHERE chord_id = found RETURNING chord_id"
)
#: Kind under which what is set aside is reported.
KIND = "chords"


def record(opened: Session, created: Iterable[tuple[ChordCreated, str | None]]) -> None:
    """Record chords, with the Redis users who reported them, before any of their parts; a repeat changes nothing."""
    rows = [
        {
            "group_id": chord.group_id,
            "parts": chord.parts,
            "size": len(chord.parts),
            "header": json.dumps(chord.header),
            "body": json.dumps(chord.body),
            "redis_user": user,
        }
        for chord, user in created
    ]
    if rows:
        opened.execute(insert(Chord).values(rows).on_conflict_do_nothing())


def add(opened: Session, added: Iterable[PartsAdded]) -> None:
    """Make the bodies of chords wait for more parts; repeating it changes nothing."""
    for each in added:
        place = {"group_id": each.group_id, "part": each.task_id, "limit": PARTS_LIMIT}
        if opened.execute(ADD, place | {"added": each.parts, "number": len(each.parts)}).first() is None:
            logger.warning("Nothing is added to chord %s: it has these parts, has ended or is full.", each.group_id)


def too_many(opened: Session, user: str, created: list[ChordCreated]) -> list[ChordCreated]:
    """Return, in order, the new chords for which the user has too many waiting chords or parts."""
    of_user = select(func.count(), func.coalesce(func.sum(Chord.size), 0)).where(_waits(), Chord.redis_user == user)
    chords, parts = opened.execute(of_user).one()
    refused = []
    for chord in created:
        if chords + 1 > WAITING_CHORDS or parts + len(chord.parts) > WAITING_PARTS:
            refused.append(chord)
        else:
            chords, parts = chords + 1, parts + len(chord.parts)
    return refused


def any_wait(opened: Session) -> bool:
    """Return whether any chord's body is not yet submitted: usually there is none, and the check is cheap."""
    return bool(opened.scalar(ANY_WAIT))


def wake(settings: Settings, ended: set[str]) -> None:
    """Schedule a check of chords that wait for these tasks; raises DatabaseUnavailable."""
    if ended:
        with session(settings.database()) as opened:
            _wake(opened, Chord.waits_for == any_(_texts(ended)))


def submit_due(settings: Settings, app: Celery) -> bool:
    """Check chords, and submit bodies whose parts have all ended; return whether there are more to check.

    Raises DatabaseUnavailable, and redis's errors when Redis is away. A body whose error may be temporary waits for
    maintenance's next round.
    """
    until = time.monotonic() + LONGEST
    with session(settings.database()) as opened:
        for chord_id in opened.scalars(_awake()).all():
            if time.monotonic() > until:
                break
            if _look_at(chord_id, opened, settings, app, until):
                # The part may have ended before it was noted that this chord waits for it.
                _wake(opened, (Chord.chord_id == chord_id) & _waits_in_vain())
        return opened.scalar(_awake()) is not None


def wake_all(settings: Settings) -> None:
    """Schedule a check of chords that wait for an ended task: the process that should have done so died before."""
    with session(settings.database()) as opened:
        _wake(opened, _waits_in_vain())


def expire(settings: Settings, app: Celery) -> None:
    """Expire chords that have waited too long, and delete those settled for as long."""
    over = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, settings.chord_retention)
    old = select(Chord.chord_id).where(Chord.created_at < over)
    with session(settings.database()) as opened:
        for chord_id in opened.scalars(old.where(_waits()).limit(AT_ONCE)).all():
            if chord := _taken(chord_id, opened):
                limit = f"its parts had not all ended within {settings.chord_retention / 86_400:g} days"
                if _deal_with(chord, opened, settings, app, ChordExpired(limit)):
                    opened.execute(_row(chord).values(expired=True, parts=[], header="null", body="null"))
                    logger.warning("Chord %s has expired: %s.", chord.group_id, limit)
            opened.commit()
        gone = old.where(Chord.body_submitted_at < over).limit(DELETED_AT_ONCE)
        opened.execute(delete(Chord).where(Chord.chord_id.in_(gone)))
        opened.execute(delete(StoredPiece).where(StoredPiece.created_at < over))


def _wake(opened: Session, condition: ColumnElement[bool]) -> None:
    """Schedule checks, except of chords being checked now: that check sees what ended meanwhile."""
    found = select(Chord.chord_id).where(_waits(), condition).order_by(Chord.chord_id).with_for_update(skip_locked=True)
    opened.execute(
        update(Chord).where(Chord.chord_id.in_(found)).values(waits_for=None),
        execution_options={"synchronize_session": False},
    )
    opened.commit()


def _awake() -> Select[Any]:
    """Select one chord per user in rotation: one user's thousands hold up no other's."""
    place = func.row_number().over(partition_by=Chord.redis_user, order_by=Chord.chord_id)
    return select(Chord.chord_id).where(_waits(), Chord.waits_for.is_(None)).order_by(place).limit(AT_ONCE)


def _waits() -> ColumnElement[bool]:
    return Chord.body_submitted_at.is_(None)


def _waits_in_vain() -> ColumnElement[bool]:
    return exists().where(Task.task_id == Chord.waits_for, Task.rank == FINAL_RANK)


def _look_at(chord_id: int, opened: Session, settings: Settings, app: Celery, until: float) -> bool:
    """Return whether it may be checked again before maintenance's next round."""
    chord, done = _taken(chord_id, opened), True
    if chord is not None and _all_ended(chord, opened, until):
        done = _deal_with(chord, opened, settings, app)
    opened.commit()
    return done


def _taken(chord_id: int, opened: Session) -> Chord | None:
    """Lock a chord and return it without its documents; None if the other of recorder and maintenance has it."""
    still = select(Chord.chord_id, Chord.group_id, Chord.size, Chord.ended, Chord.redis_user)
    found = opened.execute(still.where(Chord.chord_id == chord_id, _waits()).with_for_update(skip_locked=True))
    row = found.one_or_none()
    return row and Chord(**row._mapping)  # noqa: SLF001  # the documented way


def _all_ended(chord: Chord, opened: Session, until: float) -> bool:
    """Go on from where the last check stopped; note the first part that has not ended, or how far this one came."""
    portion, open_part = FIRST_PORTION, None
    while open_part is None and chord.ended < chord.size and time.monotonic() < until:
        parts = opened.scalar(select(Chord.parts[chord.ended + 1 : chord.ended + portion]).where(_is(chord))) or []
        ended = set(opened.scalars(select(Task.task_id).where(Task.task_id == any_(_texts(parts)), _has_ended())))
        open_part = next((part for part in parts if part not in ended), None)
        chord.ended += len(parts) if open_part is None else parts.index(open_part)
        portion = PORTION
    opened.execute(_row(chord).values(ended=chord.ended, waits_for=open_part))
    return chord.ended == chord.size


def _has_ended() -> ColumnElement[bool]:
    return Task.rank == FINAL_RANK


def _is(chord: Chord) -> ColumnElement[bool]:
    return Chord.chord_id == chord.chord_id


def _row(chord: Chord) -> Any:
    return update(Chord).where(_is(chord)).execution_options(synchronize_session=False)


def _deal_with(
    chord: Chord, opened: Session, settings: Settings, app: Celery, expired: ChordExpired | None = None
) -> bool:
    """Submit its body or set it aside; False: maintenance tries again in its next round.

    Its documents come from a worker, which may have written anything: an error in them holds up no other.
    """
    try:
        with opened.begin_nested():
            bodies.submit(chord.chord_id, opened, settings, app, expired)
    except Exception as error:  # noqa: BLE001  # a worker's documents may fail in any way
        # The error does not tell which it is: a broker that does not exist looks the same as one that is down.
        if _may_pass(error) and not set_aside.is_last_try(app.backend.redis, settings, KIND, str(chord.chord_id)):
            # Wait for a part that has ended: only maintenance will wake it.
            opened.execute(_row(chord).values(waits_for=Chord.parts[chord.size]))
            logger.warning("The body of chord %s is tried again: %s.", chord.group_id, set_aside.in_short(error))
            return False
        _set_aside(chord, error, opened, settings, app)
    opened.execute(_row(chord).values(body_submitted_at=func.now()))
    return True


def _set_aside(chord: Chord, error: Exception, opened: Session, settings: Settings, app: Celery) -> None:
    # One line: a traceback of someone else's garbage is of no use.
    why = set_aside.in_short(repr(error))
    logger.error("Chord %s has no body that could be submitted: %s.", chord.group_id, why)
    set_aside.note(app.backend.redis, settings, KIND, chord.group_id, why)
    if isinstance(error, ChordRefused):
        return  # the tasks it names may be another user's
    try:
        with opened.begin_nested():
            bodies.fail(chord.chord_id, opened, settings, app, f"It could not be submitted: {why}")
    except Exception as useless:  # noqa: BLE001  # forged documents may fail in any way, and nobody waits for them
        logger.debug("Nor can it be told that chord %s has failed: %r.", chord.group_id, useless)


def _may_pass(error: Exception) -> bool:
    """Return whether Redis or PostgreSQL may be at fault, not the chord, whose body may name a key that is no queue."""
    away = isinstance(error, OperationalError | RedisError | DatabaseError | InterfaceError | OSError)
    unfit = isinstance(error.__cause__ or error, DataError)  # kombu wraps what redis-py refuses to send
    return away and not unfit and "WRONGTYPE" not in str(error)


def _texts(ids: Iterable[str]) -> Any:
    """Make ids one parameter, for PostgreSQL accepts only 65,535."""
    return cast(sorted(set(ids)), ARRAY(Text))
