"""What a burst is asked to be, wherever its workers run."""

import uuid
from dataclasses import dataclass, field

from howl.queue_names import require_queue

#: Seconds before its deadline at which a worker stops taking tasks: at most this, and a quarter of a short runtime.
DEFAULT_GRACE = 90.0


@dataclass(frozen=True, kw_only=True)
class BurstRequest:
    """What somebody wants started."""

    workers: int
    #: Seconds until every worker is gone, and how long before that it stops taking tasks.
    runtime: float
    grace: float | None = None
    concurrency: int | None = None
    tags: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    requested_by: str | None = None
    burst_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Raises InvalidRequest for what is no queue."""
        for name in self.queues:
            require_queue(name)

    @property
    def names(self) -> list[str]:
        """The ids its workers will have."""
        return [f"local-{self.burst_id[:8]}-{number}" for number in range(1, self.workers + 1)]

    @property
    def patience(self) -> float:
        """Seconds that a draining worker has for the tasks it runs."""
        return min(DEFAULT_GRACE, self.runtime / 4) if self.grace is None else self.grace
