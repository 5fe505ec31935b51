"""Chords reported in pieces: the pieces wait in the record until all have arrived, in any order."""

import logging
from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from howl.bounded_json import parse
from howl.errors import UnreadableOutcome
from howl.models import StoredPiece
from howl.outcomes import CHORD_LIMIT, CHORD_PARSED_LIMIT, ChordCreated, ChordPiece, decode
from howl.server.chords import chords

logger = logging.getLogger(__name__)

#: Maximum bytes of one credential's pieces that wait for others.
WAITING_BYTES = 256 << 20
#: The bytes of a piece, which PostgreSQL knows without reading it, unlike the number of characters.
SIZE = func.octet_length(StoredPiece.text)


def put_together(
    opened: Session, told: Iterable[tuple[ChordPiece, str | None]]
) -> list[tuple[ChordCreated, str | None]]:
    """Record pieces, and return and remove the chords that are now complete; repeating it changes nothing."""
    whole = []
    for piece, user in told:
        if user is not None and _waiting_bytes(opened, user) + len(piece.text) > WAITING_BYTES:
            logger.error("Too much of chords waits for Redis user %s: a piece is not kept.", user)
            continue
        row = {"group_id": piece.group_id, "redis_user": user, "number": piece.number, "text": piece.text}
        opened.execute(insert(StoredPiece).values(row).on_conflict_do_nothing())
        if chord := _put_together(opened, piece, user):
            whole.append((chord, user))
    return whole


def _waiting_bytes(opened: Session, user: str) -> int:
    waiting = select(func.coalesce(func.sum(SIZE), 0)).where(StoredPiece.redis_user == user)
    return int(opened.execute(waiting).scalar_one())


def _put_together(opened: Session, piece: ChordPiece, user: str | None) -> ChordCreated | None:
    of_chord = (StoredPiece.group_id == piece.group_id) & StoredPiece.redis_user.is_not_distinct_from(user)
    # Check sizes first: what a worker wrote may not fit into memory.
    count, size = opened.execute(
        select(func.count(), func.sum(SIZE)).where(of_chord, StoredPiece.number < piece.pieces)
    ).one()
    if count < piece.pieces and size <= CHORD_LIMIT:
        return None
    texts = select(StoredPiece.text).where(of_chord).order_by(StoredPiece.number)
    try:
        if size <= CHORD_LIMIT:
            return _read(opened, "".join(opened.scalars(texts)), user)
        logger.error("Chord %s is not recorded: it has more than %d bytes.", piece.group_id, CHORD_LIMIT)
    except (UnreadableOutcome, ValueError, RecursionError) as error:
        logger.error("Chord %s is not recorded: %s.", piece.group_id, str(error)[:200])  # noqa: TRY400
    finally:
        opened.execute(delete(StoredPiece).where(of_chord))
    return None


def _read(opened: Session, text: str, user: str | None) -> ChordCreated:
    chord = decode(parse(text.encode(), CHORD_PARSED_LIMIT))
    if not isinstance(chord, ChordCreated):
        raise UnreadableOutcome("it is no chord")
    if user is not None and chords.too_many(opened, user, [chord]):
        raise UnreadableOutcome(f"too many chords or parts of Redis user {user} wait")
    return chord
