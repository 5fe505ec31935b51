"""Parked tasks among the answers to `inspect scheduled` and `query_task`: no worker holds them to tell of them."""

import base64
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from celery import Celery
from kombu.utils.json import loads
from redis.exceptions import NoPermissionError

from howl.bounded_json import parse, parsed_size
from howl.broker import bounded_reads
from howl.broker.bounded_reads import LATEST
from howl.broker.message import NO_TASK, PARSED_BYTES, task_headers
from howl.broker.namespaces import all_namespaces
from howl.celery import settings_of

#: Commands whose answers they belong to, and what a worker's answer is.
QUERY = "query_task"
ANSWERS: dict[str, type] = {"scheduled": list, "dump_schedule": list, QUERY: dict}
#: Most that are shown of what is scheduled, those due first, and bytes of them, about: all are in memory together.
MOST, MOST_BYTES = 1000, 1 << 20
#: As Celery's own timer shows them.
PRIORITY = 6


def add_parked(replies: list[dict[str, Any]], command: str, ids: Any, app: Celery) -> None:
    """Add them to the answer of one worker, the first by name: each is shown once; raises redis's errors.

    A credential that may not read what is parked is shown none.
    """
    told: dict[str, Any] = {
        node: said for reply in replies for node, said in reply.items() if isinstance(said, ANSWERS[command])
    }
    if not told:
        return
    node = min(told)
    if command == QUERY:
        wanted = {ids} if isinstance(ids, str) else set(ids or ())
        found = (entry["request"] for entry, _ in _entries(app, node) if entry["request"]["id"] in wanted)
        told[node].update({request["id"]: ["scheduled", request] for request in found})
    else:
        told[node].extend(_first(_entries(app, node)))


def _first(entries: Iterator[tuple[dict[str, Any], int]]) -> Iterator[dict[str, Any]]:
    number = total = 0
    for entry, size in entries:
        number, total = number + 1, total + size
        if number > MOST or total > MOST_BYTES:
            return
        yield entry


def _entries(app: Celery, node: str) -> Iterator[tuple[dict[str, Any], int]]:
    """What is parked, as Celery shows it, and the bytes of each; what cannot be read is left out."""
    for claim, due in _parked(app):
        with suppress(*NO_TASK):
            yield _entry(claim.partition(b"\n")[2], due, app, node), len(claim)


def _parked(app: Celery) -> Iterator[tuple[bytes, float]]:
    client, settings = app.backend.redis, settings_of(app)
    limits = bounded_reads.MESSAGES._replace(removes=False)
    for namespace in all_namespaces(client, settings):
        with suppress(NoPermissionError):
            yield from bounded_reads.scores(client, settings, namespace, "parked", limits).items()


def _entry(document: bytes, due: float, app: Celery, node: str) -> dict[str, Any]:
    """Raises one of NO_TASK."""
    message = parse(document, PARSED_BYTES)
    headers, properties = task_headers(message), message["properties"]
    args, kwargs = _arguments(message, headers)
    came = properties.get("delivery_info") or {}
    moment = datetime.fromtimestamp(min(max(due / 1000, 0), LATEST), app.timezone)
    request = {
        "id": str(headers["id"]),
        "name": str(headers.get("shadow") or headers["task"]),
        "args": args,
        "kwargs": kwargs,
        "type": str(headers["task"]),
        "hostname": node,
        "time_start": None,
        "acknowledged": False,
        "delivery_info": {
            "exchange": came.get("exchange"),
            "routing_key": came.get("routing_key"),
            "priority": properties.get("priority"),
            "redelivered": False,
        },
        "worker_pid": None,
    }
    return {"eta": moment.isoformat(), "priority": PRIORITY, "request": request}


def _arguments(message: dict[str, Any], headers: dict[str, Any]) -> tuple[Any, Any]:
    """As they were given; of a body that is compressed, or too large, what its sender wrote for people to read."""
    if "args" in headers:  # the first protocol's body
        return headers["args"], headers.get("kwargs")
    try:
        body = base64.b64decode(message["body"], validate=True)
        if parsed_size(body) <= PARSED_BYTES:
            args, kwargs, _ = loads(body)
            return args, kwargs
    except NO_TASK:
        pass
    return headers.get("argsrepr"), headers.get("kwargsrepr")
