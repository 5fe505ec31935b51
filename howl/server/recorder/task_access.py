"""Which tasks a Redis user's workers may report and whose results they may see: those of queues the user can reach."""

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, any_, cast, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from howl.broker.namespaces import may_push
from howl.config import Settings
from howl.models import Task

#: A name that no queue may have: a user who could push to it could push to any.
ANY = "\x01any"
#: Seconds for which Redis's answer is cached: rights rarely change, and asking for each task would cost a round trip.
BELIEVED = 5.0


class Reach:
    """Asks Redis which queues its users may push to, and caches the answers for a moment."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self.client, self.settings = client, settings
        self._answers: dict[tuple[str, str], bool] = {}
        self._forget_at = 0.0

    def covers(self, user: str | None, queue: str | None) -> bool:
        """Return whether the user could push to the queue; user None has all rights.

        Queue None, an unknown queue, is reachable only for user None. Raises redis's errors.
        """
        if user is None or queue is None:
            return user is None
        if time.monotonic() >= self._forget_at:
            self._answers.clear()
            self._forget_at = time.monotonic() + BELIEVED
        if (user, queue) not in self._answers:
            self._answers[user, queue] = may_push(self.client, user, self.settings.key(queue))
        return self._answers[user, queue]

    def sees(self, user: str | None, task: Any) -> bool:
        """Return whether the user may see how this row's task ended: its workers reported it or could have run it."""
        return user is None or task.redis_user == user or self.covers(user, task.queue)

    def foreign(self, opened: Session, user: str | None, task_ids: Iterable[str]) -> dict[str, str]:
        """Return the queues, by task id, of tasks that a trusted record places in queues the user cannot reach.

        For a task that nobody submitted, another worker's report is no better than the user's own.
        """
        if user is None or self.covers(user, ANY):
            return {}
        # A single parameter, however many ids there are.
        sought = cast(sorted(set(task_ids)), ARRAY(Text))
        trusted = Task.redis_user.is_(None) & Task.queue.is_not(None)
        rows = opened.execute(select(Task.task_id, Task.queue).where(Task.task_id == any_(sought), trusted))
        return {task_id: queue for task_id, queue in rows if queue and not self.covers(user, queue)}
