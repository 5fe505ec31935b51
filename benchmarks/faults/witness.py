"""The evidence: a second reader of the outcome stream, and the diary that tasks write themselves."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.log import Log
from howl.broker.namespaces import namespace_of
from howl.config import Settings
from howl.outcomes import STATUSES

FINAL = frozenset(state for state, (_, rank) in STATUSES.items() if rank == 3)
#: Most seconds for the reader to write down the last entries.
PATIENCE = 2.0


class Witness:
    """The entries of the outcome stream, as copied by the reader's process, a consumer group of its own.

    The recorder deletes what it has recorded without waiting: on a busy machine it is sometimes faster than the reader.
    Entries that the reader missed are taken from Redis's log, so that nothing goes uncounted.
    """

    def __init__(self, settings: Settings, path: Path, client: Any, log: Log) -> None:
        self._client = client
        self._key = namespace_of(settings).key("outcomes")
        self._path = path
        self._log = log
        self._forgotten: set[bytes] = set()
        self._missed: dict[bytes, bytes] = {}
        path.touch()

    def forget_what_redis_lost(self) -> None:
        """Drop entries that were read but are no longer in Redis's log: they count as never added."""
        # Ids are times: a lost one is not used again.
        self._forgotten |= self._read().keys() - self._log.added(self._key).keys()

    def unseen(self) -> int:
        """Look for all entries, and return how many of those Redis counts are missing: if any, nothing is proved."""
        deadline = time.monotonic() + PATIENCE
        while (unseen := self._unseen()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if unseen:
            self._missed = self._log.added(self._key)
        return self._unseen()

    def _unseen(self) -> int:
        return int(self._client.xinfo_stream(self._key)["entries-added"]) - len(self._entries())

    @property
    def finals(self) -> Counter[tuple[str, int]]:
        """The number of final outcomes by task id and attempt."""
        documents = [json.loads(document) for document in self._entries().values()]
        final = [document for document in documents if document.get("state") in FINAL]
        return Counter((document["task_id"], document.get("attempt", 1)) for document in final)

    @property
    def dead(self) -> int:
        """The number of tasks declared dead."""
        return self._count(b'"DEAD"')

    @property
    def refused(self) -> int:
        """The number of messages recorded as refused: their task was known, but not what it should do."""
        return self._count(b'"MessageRefused"')

    def _count(self, word: bytes) -> int:
        return sum(1 for document in self._entries().values() if word in document)

    def _entries(self) -> dict[bytes, bytes]:
        read = self._read()
        return self._missed | {entry_id: read[entry_id] for entry_id in read.keys() - self._forgotten}

    def _read(self) -> dict[bytes, bytes]:
        """Return the document of each entry; the reader may copy one twice, if Redis forgot that it had read it."""
        whole, _, _ = self._path.read_bytes().rpartition(b"\n")
        return dict(line.partition(b" ")[::2] for line in whole.split(b"\n") if line)


@dataclass(frozen=True)
class Line:
    """A line that a task wrote about itself."""

    kind: str
    task_id: str
    pid: int


class Diary:
    """The file to which tasks append a line when they begin and one when they end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[Line]:
        """Return all whole lines so far."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        parts = (line.split() for line in whole.splitlines())
        return [Line(kind, task_id, int(pid)) for kind, task_id, pid in parts]

    def starts(self) -> Counter[str]:
        """Count how often each task began."""
        return Counter(line.task_id for line in self.lines() if line.kind == "began")
