"""Parked tasks in the answers to `inspect scheduled` and `query_task`: no worker holds them, so none reports them."""

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

#: Commands whose answers include parked tasks, and the type of a worker's answer.
QUERY = "query_task"
ANSWERS: dict[str, type] = {"scheduled": list, "dump_schedule": list, QUERY: dict}
#: Most scheduled tasks that are shown, those due first, and their bytes, about: all are in memory together.
MOST, MOST_BYTES = 1000, 1 << 20
#: Priority that Celery's own timer shows.
PRIORITY = 6


def add_parked(replies: list[dict[str, Any]], command: str, ids: Any, app: Celery) -> None:
    """Add parked tasks to the answer of one worker, the first by name, so that each is shown once.

    A credential that may not read parked tasks is shown none. Raises redis's errors.
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
    """Yield parked tasks as Celery shows them, with the bytes of each; skip those that cannot be read."""
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
    """Return a parked task as Celery shows it; raises one of NO_TASK."""
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
    """Return args and kwargs as given; of a body that is compressed or too large, its sender's readable form."""
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
