"""Which tasks a Redis user's workers may speak of, and see the results of: those of queues that the user reaches."""

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, any_, cast, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from howl.broker.namespaces import may_push
from howl.config import Settings
from howl.models import Task

#: No queue, for none may have such a name: who could push to it could push to any.
ANY = "\x01any"
#: Seconds that Redis's answer is believed: rights change seldom, and to ask for each task would cost a round trip.
BELIEVED = 5.0


class Reach:
    """Asks Redis what its users may, and remembers the answers for a moment."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self.client, self.settings = client, settings
        self._answers: dict[tuple[str, str], bool] = {}
        self._forget_at = 0.0

    def covers(self, user: str | None, queue: str | None) -> bool:
        """Whether the user, None being somebody who may do everything, could push to the queue.

        None, a queue that nobody knows, is within nobody's reach. Raises redis's errors.
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
        """Whether the user may see how the task of this row ended: his workers told, or could have run it."""
        return user is None or task.redis_user == user or self.covers(user, task.queue)

    def foreign(self, opened: Session, user: str | None, task_ids: Iterable[str]) -> dict[str, str]:
        """Those of the tasks, and their queues, that are of a queue out of the user's reach, by a trusted word.

        Of a task that nobody submitted, another worker's word is no better than the user's own.
        """
        if user is None or self.covers(user, ANY):
            return {}
        # One parameter, however many they are.
        sought = cast(sorted(set(task_ids)), ARRAY(Text))
        trusted = Task.redis_user.is_(None) & Task.queue.is_not(None)
        rows = opened.execute(select(Task.task_id, Task.queue).where(Task.task_id == any_(sought), trusted))
        return {task_id: queue for task_id, queue in rows if queue and not self.covers(user, queue)}
