"""Remote control as clients use it: what is revoked stays so for who does not hear it, what is parked is shown too."""

import json
from typing import Any

from billiard.common import TERM_SIGNAME
from celery.app import control
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from howl.broker.parked_tasks import ANSWERS, add_parked
from howl.broker.transport import is_for_a_worker
from howl.celery import settings_of
from howl.connections.explain import reason
from howl.node_names import node_name_of
from howl.task_ids import texts

#: Ids of revoked tasks that workers who start later are told, about.
REVOKED_KEPT = 50_000
#: What is to hold whoever hears it: each worker's turn tells it again.
REVOKING = ("revoke", "terminate", "revoke_by_stamped_headers")


class Control(control.Control):
    """Named by the application."""

    def broadcast(
        self, command: str, arguments: dict[str, Any] | None = None, destination: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Tell workers, or those of these node names or ids; that tasks are revoked is kept too, for those who do not
        hear it.

        Nothing is revoked where the server does what a worker wrote, who may name anybody's: Celery revokes the tasks
        of a group that is the body of a failing chord, although it has told by then that they failed.
        """
        arguments = texts(arguments)  # workers know a task whose id was given as a UUID by the text of it
        if command in REVOKING:
            if is_for_a_worker():
                return None
            if not destination and not options.get("pattern"):  # else it is for those named alone
                self._keep(command, **(arguments or {}))
        if isinstance(destination, list | tuple):
            destination = [node_name_of(each) for each in destination]
        if command in ANSWERS and options.get("reply"):
            return self._with_parked(command, arguments or {}, destination, *args, **options)
        return super().broadcast(command, arguments, destination, *args, **options)

    def _with_parked(
        self, command: str, arguments: dict[str, Any], *args: Any, callback: Any = None, **options: Any
    ) -> Any:
        """What workers answer, and what none of them holds; `callback` is given each answer when all are there."""
        replies = super().broadcast(command, arguments, *args, **options)
        try:
            add_parked(replies, command, arguments.get("ids"), self.app)
        except RedisError as error:
            raise OperationalError(reason(error)) from error
        for each in replies if callback else ():
            callback(each)
        return replies

    def _keep(self, command: str, task_id: Any = (), headers: Any = (), **how: Any) -> None:
        signal = (how.get("signal") or TERM_SIGNAME) if how.get("terminate") or command == "terminate" else None
        for each in [task_id] if isinstance(task_id, str) else task_id:
            self.revoke_for_good(each, signal)
        if headers:
            self._append({"task_id": "", "terminate": signal or "", "stamps": json.dumps(_named(headers))})

    def revoke_for_good(self, task_id: str, signal: str | int | None = None) -> None:
        """Every worker's next turn tells it, and that of workers that start later; raises OperationalError.

        With a signal, a run of the task is ended by it.
        """
        self._append({"task_id": task_id} | ({"terminate": str(signal)} if signal else {}))

    def _append(self, order: dict[str, str]) -> None:
        client: Any = self.app.backend.redis
        key = settings_of(self.app).key("revoked")
        try:
            client.xadd(key, order, maxlen=REVOKED_KEPT, approximate=True)
        except RedisError as error:
            raise OperationalError(reason(error)) from error


def _named(headers: Any) -> dict[str, Any]:
    """Stamps as Celery takes them: by name, or as words `name=value`."""
    return headers if isinstance(headers, dict) else dict(word.split("=", 1) for word in headers)
