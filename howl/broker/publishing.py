"""Making messages: an id that could not be recorded is refused where it is given, with a readable error."""

from typing import Any

from celery.app import amqp

from howl.task_ids import check_ids, check_signatures


class AMQP(amqp.AMQP):
    """The AMQP class of the application."""

    def as_task_v1(self, *args: Any, **options: Any) -> Any:
        return _checked(super().as_task_v1(*args, **options))

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        return _checked(super().as_task_v2(*args, **options))


def _checked(message: Any) -> Any:
    """Return the message with its ids as text; raises InvalidRequest."""
    own, others = (message.body, message.body) if isinstance(message.body, dict) else (message.headers, message.body[2])
    check_ids(own)
    message.properties["correlation_id"] = own["id"]
    for name in ("callbacks", "errbacks", "chain", "chord"):
        if others.get(name):
            check_signatures(others[name])
    return message
