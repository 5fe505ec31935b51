"""The request for a burst, wherever its workers run."""

import uuid
from dataclasses import dataclass, field

from howl.queue_names import require_queue

#: Most seconds before its deadline at which a worker stops taking tasks; less for a short runtime, a quarter of it.
DEFAULT_GRACE = 90.0


@dataclass(frozen=True, kw_only=True)
class BurstRequest:
    """A request to start workers for a limited time."""

    workers: int
    #: Seconds until every worker is gone, and seconds before that at which it stops taking tasks.
    runtime: float
    grace: float | None = None
    concurrency: int | None = None
    tags: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    requested_by: str | None = None
    burst_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a name that no queue may have."""
        for name in self.queues:
            require_queue(name)

    @property
    def names(self) -> list[str]:
        """The ids of its workers, on this machine."""
        return [f"local-{self.burst_id[:8]}-{number}" for number in range(1, self.workers + 1)]

    @property
    def patience(self) -> float:
        """Seconds for a draining worker to end the tasks it runs."""
        return min(DEFAULT_GRACE, self.runtime / 4) if self.grace is None else self.grace
