"""The holder of a stolen credential: a client with a worker's join string, redis-py and nats-py, and no restraint.

All names and formats of the product that an attack needs are here, taken from the product where it has a function.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from itertools import count, cycle
from typing import Any

from nats.aio.client import Client

from howl.broker.doorbell import doorbell
from howl.broker.namespaces import namespace_of, user_of
from howl.broker.scripts import TURN
from howl.config import Settings
from howl.connections.nats import Connection
from howl.connections.redis import redis_client
from howl.outcomes import Outcome, encode
from howl.provision.permissions import worker_subjects

#: The queues of the thief and of its neighbour, and below the names of their credentials.
MINE, THEIRS = "mine", "theirs"
THIEF, VICTIM = "thief", "victim"
#: Seconds after which the thief gives up a command and connects again.
TIMEOUT = 10.0


class Refused(Exception):
    """The credential may not do this, or there is nothing of this kind to do."""


class Thief:
    """One credential in use by one process."""

    def __init__(self, settings: Settings, until: float) -> None:
        self.settings = settings
        #: Unix time at which the attack ends.
        self.until = until
        self.namespace = namespace_of(settings)
        self.redis: Any = redis_client(settings, timeout=TIMEOUT)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin like a worker that starts: a new owner, whose turns count from 1, over new connections."""
        self.redis.connection_pool.disconnect()
        #: The owner, and numbers for its turns.
        self.life, self.numbers = self.owner(), count(1)

    @property
    def is_over(self) -> bool:
        return time.time() >= self.until

    # --- Redis ------------------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """Return one of the keys that its workers hold or leave."""
        return self.namespace.key(name)

    @property
    def queue(self) -> str:
        """The list of its own queue."""
        return self.settings.key(MINE)

    def owner(self) -> str:
        """Return an unused owner: one life of a worker."""
        return f"celery@{THIEF}.{uuid.uuid4().hex}"

    def turn(self, owner: str, *words: Any, number: int = 1, wanted: int = 0, most_bytes: int = 8 << 20) -> Any:
        """Run a turn on its own queue; a word is (kind, tag, value ...), or raw text for turn.lua."""
        keys = [self.key(f"claims:{owner}"), self.key(f"turns:{owner}"), self.queue, self.settings.key(doorbell(MINE))]
        said = [part for word in words for part in _parts(word)]
        who = [self.settings.key_prefix, self.namespace.root, owner]
        numbers = [number, int(self.settings.lease * 1000), wanted, most_bytes, "0-0", 1, self.settings.backlog_limit]
        return TURN.run(self.redis, keys, [*who, *numbers, *said])

    def leave(self, *documents: bytes) -> None:
        """Add entries to its outcome stream, in one round trip."""
        with self.redis.pipeline(transaction=False) as together:
            for document in documents:
                together.xadd(self.key("outcomes"), {"outcome": document})
            together.execute()

    # --- NATS -------------------------------------------------------------------------------------------------------

    def subject(self, kind: str, chosen: str = "x") -> str:
        """Return a subject of a kind (`events`, `artifacts`, `leave`) that it may use; `chosen` fills wildcards."""
        granted = [name for name in self._granted("publish") if kind in name]
        if not granted:
            raise Refused(f"no subject of {kind} is granted")
        return _filled(granted[0], chosen)

    def fresh_subjects(self, kind: str, length: int) -> Callable[[], str]:
        """Return a function that makes unused subjects, each about `length` characters long."""
        free = [name for name in self._granted("publish") if kind in name and _gaps(name)]
        if not free:
            raise Refused(f"no subject of {kind} is its own choice")
        names = cycle(free)

        def fresh() -> str:
            name = next(names)
            return _filled(name, uuid.uuid4().hex + "x" * max(1, length // _gaps(name) - 32))

        return fresh

    @property
    def inboxes(self) -> list[str]:
        """The subjects of answers to its requests, and those of all clients' answers from before each had its own."""
        return list(dict.fromkeys([*self._granted("subscribe"), f"{self.settings.subject_prefix}.inbox.>"]))

    @property
    def inbox(self) -> str:
        """A subject of its own for answers."""
        return _filled(self._granted("subscribe")[0], uuid.uuid4().hex)

    def on_nats(self, act: Callable[[Client], Awaitable[None]]) -> None:
        """Run `act` over a connection of its own; raises Refused if NATS reports a permissions violation."""
        asyncio.run(self._on_nats(act))

    async def _on_nats(self, act: Callable[[Client], Awaitable[None]]) -> None:
        complaints: list[str] = []

        async def complain(error: Exception) -> None:
            complaints.append(str(error))

        client = await Connection().open(self.settings, "thief", error_cb=complain)
        try:
            await act(client)
            await client.flush(5)
        finally:
            await client.close()
        forbidden = [text for text in complaints if "permissions violation" in text.lower()]
        if forbidden:
            raise Refused(forbidden[0])

    def _granted(self, way: str) -> list[str]:
        return worker_subjects(self.settings.subject_prefix, user_of(self.settings))[way]


def outcome(result: bytes, task_id: str | None = None) -> bytes:
    """Build a valid outcome of a task that never existed, with this JSON as its result."""
    marked = Outcome(
        task_id=task_id or uuid.uuid4().hex, state="SUCCESS", at="2026-01-01T00:00:00+00:00", result="@", name="forged"
    )
    return encode(marked).replace(b'"@"', result, 1)


def _gaps(subject: str) -> int:
    """Count the wildcard parts, which the publisher chooses."""
    return sum(part in ("*", ">") for part in subject.split("."))


def _filled(subject: str, chosen: str) -> str:
    return ".".join(chosen if part in ("*", ">") else part for part in subject.split("."))


def _parts(word: Any) -> list[Any]:
    if isinstance(word, str):
        return [word]
    kind, tag, *values = word
    return [kind, tag, len(values), *values]
