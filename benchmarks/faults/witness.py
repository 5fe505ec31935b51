"""What counts: a second reader of the outcomes stream, and what tasks write themselves."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howl.backend import redis_client
from howl.config import Settings
from howl.outcomes import STATUSES

FINAL = frozenset(state for state, (_, rank) in STATUSES.items() if rank == 3)
#: Seconds for the reader to write down what was appended last.
PATIENCE = 2.0


class Witness:
    """What the reader's process has copied of the stream."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self._client: Any = redis_client(settings)
        self._key = settings.key("outcomes")
        self._path = path
        self._forgotten: set[bytes] = set()
        path.touch()

    def close(self) -> None:
        self._client.close()

    def forget(self, entry_ids: set[bytes]) -> None:
        """Redis lost these."""
        self._forgotten |= entry_ids

    @property
    def unseen(self) -> int:
        """Entries of the stream that were gone before they could be read: if there are any, nothing is proved."""
        deadline = time.monotonic() + PATIENCE
        while (unseen := self._unseen()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return unseen

    def _unseen(self) -> int:
        return int(self._client.xinfo_stream(self._key)["entries-added"]) - len(self._entries())

    @property
    def finals(self) -> Counter[tuple[str, int]]:
        """Final outcomes by task id and attempt."""
        documents = [json.loads(document) for document in self._entries().values()]
        final = [document for document in documents if document.get("state") in FINAL]
        return Counter((document["task_id"], document.get("attempt", 1)) for document in final)

    @property
    def dead(self) -> int:
        """Tasks declared dead."""
        return self._count(b'"DEAD"')

    @property
    def refused(self) -> int:
        """Messages recorded as refused: their task was known, what it should do was not."""
        return self._count(b'"MessageRefused"')

    def _count(self, word: bytes) -> int:
        return sum(1 for document in self._entries().values() if word in document)

    def _entries(self) -> dict[bytes, bytes]:
        """What each entry says; the reader may copy one twice, when Redis forgot that it had read it."""
        whole, _, _ = self._path.read_bytes().rpartition(b"\n")
        entries = dict(line.partition(b" ")[::2] for line in whole.split(b"\n") if line)
        return {entry_id: document for entry_id, document in entries.items() if entry_id not in self._forgotten}


@dataclass(frozen=True)
class Line:
    """What a task wrote of itself."""

    kind: str
    task_id: str
    pid: int


class Diary:
    """The file to which tasks append a line when they begin and one when they end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[Line]:
        """All whole lines by now."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        parts = (line.split() for line in whole.splitlines())
        return [Line(kind, task_id, int(pid)) for kind, task_id, pid in parts]

    def starts(self) -> Counter[str]:
        """How often each task began."""
        return Counter(line.task_id for line in self.lines() if line.kind == "began")
