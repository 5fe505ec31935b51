"""Remote control for clients: revokes also reach workers that missed the broadcast, and parked tasks are shown."""

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

#: Most revoke entries kept for workers that start later; approximate.
REVOKED_KEPT = 50_000
#: Commands that must reach every worker, whether or not it heard them: each worker's turn repeats them.
REVOKING = ("revoke", "terminate", "revoke_by_stamped_headers")


class Control(control.Control):
    """The remote control of the application."""

    def broadcast(
        self, command: str, arguments: dict[str, Any] | None = None, destination: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Send a command to workers, or to those with these node names or ids, and keep revokes for those that miss it.

        Nothing is revoked while the server acts on what a worker wrote, which may name anyone's tasks: Celery revokes
        the tasks of a group that is the body of a failing chord, although it has reported by then that they failed.
        """
        arguments = texts(arguments)  # workers know a task by the text of its id, even if it was given as a UUID
        if command in REVOKING:
            if is_for_a_worker():
                return None
            if not destination and not options.get("pattern"):  # otherwise it is only for those named
                self._keep(command, **(arguments or {}))
        if isinstance(destination, list | tuple):
            destination = [node_name_of(each) for each in destination]
        if command in ANSWERS and options.get("reply"):
            return self._with_parked(command, arguments or {}, destination, *args, **options)
        return super().broadcast(command, arguments, destination, *args, **options)

    def _with_parked(
        self, command: str, arguments: dict[str, Any], *args: Any, callback: Any = None, **options: Any
    ) -> Any:
        """Return the workers' answers with parked tasks added; `callback` gets each answer when all have arrived."""
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
        """Revoke the task on every worker, also those that start later, by way of its next turn.

        With a signal, a run of the task is ended by it. Raises OperationalError.
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
    """Return stamps by name, given as Celery takes them: a mapping, or words `name=value`."""
    return headers if isinstance(headers, dict) else dict(word.split("=", 1) for word in headers)
