"""Remote control as clients use it: what they revoke stays revoked for workers that start later."""

from collections.abc import Sequence
from typing import Any

from celery.app import control
from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from howl.broker.transport import is_for_a_worker
from howl.celery import settings_of
from howl.ids import texts
from howl.tls import reason

#: Ids of revoked tasks that workers who start later are told, about.
REVOKED_KEPT = 50_000


class Control(control.Control):
    """Named by the application."""

    def revoke(
        self, task_id: str | Sequence[str], destination: Sequence[str] | None = None, *args: Any, **options: Any
    ) -> Any:
        """Tell all workers, or those named, never to run a task, or several; as Celery's own, it may stop a run.

        Nothing happens where the server does what a worker wrote, who may name anybody's: Celery revokes the tasks of
        a group that is the body of a failing chord, although it has told by then that they failed.
        """
        if is_for_a_worker():
            return None
        if not destination:
            for each in maybe_list(task_id):
                self.revoke_for_good(str(each))
        return super().revoke(task_id, destination, *args, **options)

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **options: Any) -> Any:
        """Workers know a task whose id was given as a UUID by the text of it."""
        return super().broadcast(command, texts(arguments), *args, **options)

    def revoke_for_good(self, task_id: str) -> None:
        """Workers that start later hear of it too, as of no broadcast; raises OperationalError."""
        client: Any = self.app.backend.redis
        key = settings_of(self.app).key("revoked")
        try:
            client.xadd(key, {"task_id": task_id}, maxlen=REVOKED_KEPT, approximate=True)
        except RedisError as error:
            raise OperationalError(reason(error)) from error
