"""A plain one, which says a good deal about its broker."""

from typing import Any

from celery import Celery, Task
from celery.worker.request import Request

import howl
from howl.worker.task.context import progress

app = Celery("plain", broker="amqp://guest:only-for-tests@nowhere.invalid//", backend="rpc://")
app.conf.update(task_default_queue="plain", visibility_timeout=5, broker_transport_options={"visibility_timeout": 5})
howl.install(app)


class Named(Request):  # type: ignore[misc]  # Celery has no types
    """A request class of the project's own, which says its name in what `inspect active` answers."""

    def info(self, safe: bool = False) -> dict[str, Any]:
        return {**super().info(safe=safe), "project": "plain"}


class Base(Task):
    """A base of Celery's, not of the application's."""

    Request = Named


@app.task
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@app.task(bind=True, base=Base)
def who(self: Task) -> list[Any]:
    """Tell how far it is, and where it runs."""
    progress(1, 2)
    return [self.request.hostname, issubclass(self.Request, Named)]
