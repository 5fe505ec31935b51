"""The quota for files: what each worker credential uses of the room, so that none takes all.

Upload places given to a credential count as used, until it is known how much arrived. None of this is stored: it is
read back from the bucket itself.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from howl.artifacts.store import PIECE
from howl.config import Settings
from howl.connections.nats import user_token
from howl.server_requests import PIECE_TIME, Refused, pieces_of

#: Seconds after a file's last place was given within which its last piece and its end may still arrive.
LATEST = PIECE_TIME + 60.0

BUSY = Refused(why="other files of this credential's are on their way, and take all its room", is_final=False)


@dataclass
class Held:
    """The room that a file takes, in bytes."""

    size: int
    #: Places given since the size was last known, and the monotonic second until which they may be used.
    places: int = 0
    until: float = 0.0
    #: Whether the server has described it, so that it accepts no more pieces.
    is_whole: bool = False

    def taken(self, now: float) -> int:
        """Include pieces that may yet arrive."""
        return self.size + (self.places * PIECE if not self.is_whole or now < self.until else 0)


class Room:
    """Files by credential and file id."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.own = user_token(settings)
        self.files: dict[str, dict[str, Held]] = {}

    def give(self, user: str, artifact_id: str, size: int, pieces: int) -> Refused | None:
        """Give more places for a file of `size` bytes, or return why there are none."""
        now, files = time.monotonic(), self.files.get(user, {})
        held = files.get(artifact_id) or Held(0)
        if held.is_whole or held.places + pieces > pieces_of(size):
            return Refused(why="the server knows another file of this id", is_final=False)
        # A NATS with a single user is not shared.
        share = 1 if user == self.own else self.settings.artifact_share
        room, count = int(share * self.settings.artifact_room), int(share * self.settings.artifact_count)
        if artifact_id not in files and len(files) >= count:
            return Refused(why=_full(f"it has {count:,} files", "HOWL_ARTIFACT_COUNT"), is_final=True)
        others = [each for name, each in files.items() if name != artifact_id]
        if sum(each.size for each in others) + size > room:
            return Refused(why=_full(f"its files may have {room:,} bytes", "HOWL_ARTIFACT_ROOM"), is_final=True)
        if sum(each.taken(now) for each in others) + (held.places + pieces) * PIECE > room:
            return BUSY
        self.files.setdefault(user, {})[artifact_id] = held
        held.places, held.until = held.places + pieces, now + LATEST
        return None

    def end(self, user: str, artifact_id: str, size: int, pieces: int) -> None:
        """Note that a file is whole, and how many of its places it used."""
        held = self.files.setdefault(user, {}).setdefault(artifact_id, Held(0))
        held.size, held.places, held.is_whole = size, max(0, held.places - pieces), True

    def remove(self, artifact_id: str) -> None:
        """Remove a file that is gone, whoever owned it."""
        for files in self.files.values():
            files.pop(artifact_id, None)

    def load(self, found: Mapping[tuple[str, str], Held]) -> None:
        """Load files from the bucket's content; those with open places, and whole ones, stay as they are known."""
        now, known = time.monotonic(), self.files
        self.files = {}
        for user, files in known.items():
            for artifact_id, held in files.items():
                if now < held.until or (held.is_whole and (user, artifact_id) in found):
                    self.files.setdefault(user, {})[artifact_id] = held
        for (user, artifact_id), held in found.items():
            self.files.setdefault(user, {}).setdefault(artifact_id, held)


def _full(why: str, setting: str) -> str:
    return (
        f"the server's room for files is full: raise {setting} or lower HOWL_ARTIFACT_RETENTION there. Of this "
        f"worker's credential, {why}"
    )
