"""What a message says of its task, in either of Celery's protocols (docs.celeryq.dev, "Message Protocol")."""

import base64
import json
import uuid
from typing import Any

from kombu.utils.json import loads

from howl.bounded_json import parse

#: Bytes of memory that a message may take when it is parsed.
PARSED_BYTES = 32 << 20
#: Headers that are ids, or none: another Celery application's may be UUIDs (`task_id=uuid.uuid4()`).
ID_HEADERS = ("id", "root_id", "parent_id", "group")
#: How a message ends whose task no worker of its queue knows; JSON allows it.
NOBODY = b"\n"
#: What `task_headers` raises for what is no task's message.
NO_TASK = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def task_headers(message: dict[str, Any]) -> dict[str, Any]:
    """`id`, `task`, `retries`, `eta` and so on of a task's message, in the first protocol those of its body.

    Raises one of NO_TASK for what is none; a body that is compressed, or not JSON, is not looked into.
    """
    headers: dict[str, Any] = message.get("headers") or {}
    if "id" in headers or "task" in headers:
        for name in ID_HEADERS:
            if not isinstance(headers.get(name), str | None):
                headers[name] = _as_text(headers[name])
        return headers
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    said: dict[str, Any] = parse(body if isinstance(body, bytes) else body.encode(), PARSED_BYTES)
    return said


def _as_text(given: Any) -> Any:
    """A UUID, or what kombu's JSON writes in its place, as a text; anything else as it is."""
    if isinstance(given, dict) and given.get("__type__") == "uuid":
        given = loads(json.dumps(given))
    return str(given) if isinstance(given, uuid.UUID) else given
