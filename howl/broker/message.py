"""Reading a task's headers from a message, in either of Celery's protocols (docs.celeryq.dev, "Message Protocol")."""

import base64
import json
import uuid
from typing import Any

from kombu.utils.json import loads

from howl.bounded_json import parse

#: Most bytes of memory that a message may take when it is parsed.
PARSED_BYTES = 32 << 20
#: Headers that hold ids or None: another Celery application's ids may be UUIDs (`task_id=uuid.uuid4()`).
ID_HEADERS = ("id", "root_id", "parent_id", "group")
#: Mark at the end of a message whose task no worker of its queue knows; JSON allows it.
NOBODY = b"\n"
#: Errors that `task_headers` raises for a message that is not a task's.
NO_TASK = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def task_headers(message: dict[str, Any]) -> dict[str, Any]:
    """Return `id`, `task`, `retries`, `eta` and so on of a task's message; in the first protocol its body has them.

    Raises one of NO_TASK if it is not a task's message. A body that is compressed, or not JSON, is not read.
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
    """Return a UUID, or what kombu's JSON writes for one, as text; anything else unchanged."""
    if isinstance(given, dict) and given.get("__type__") == "uuid":
        given = loads(json.dumps(given))
    return str(given) if isinstance(given, uuid.UUID) else given
