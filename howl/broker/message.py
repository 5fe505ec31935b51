"""What a message says of its task, in either of Celery's protocols (docs.celeryq.dev, "Message Protocol")."""

import base64
from typing import Any

from howl.bounded_json import parse

#: Bytes of memory that a message may take when it is parsed.
PARSED_BYTES = 32 << 20
#: What `task_headers` raises for what is no task's message.
NO_TASK = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def task_headers(message: dict[str, Any]) -> dict[str, Any]:
    """`id`, `task`, `retries`, `eta` and so on of a task's message, in the first protocol those of its body.

    Raises one of NO_TASK for what is none; a body that is compressed, or not JSON, is not looked into.
    """
    headers: dict[str, Any] = message.get("headers") or {}
    if "id" in headers or "task" in headers:
        return headers
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    said: dict[str, Any] = parse(body if isinstance(body, bytes) else body.encode(), PARSED_BYTES)
    return said
