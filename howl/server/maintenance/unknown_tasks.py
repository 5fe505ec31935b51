"""Put tasks unknown to the worker that took them back on their queue, while another worker may know them.

Once all its workers have announced their tasks and none knows it, the message is marked (howl.broker.message.NOBODY):
the worker that takes it next fails it as Celery does.
"""

from functools import cache, partial
from typing import Any

from sqlalchemy import any_, literal, select
from sqlalchemy.orm import Session

from howl.bounded_json import parse
from howl.broker import bounded_reads
from howl.broker.doorbell import doorbell
from howl.broker.message import NO_TASK, NOBODY, PARSED_BYTES, task_headers
from howl.broker.namespaces import Namespace, may_push, users_of
from howl.broker.scripts import OFFER
from howl.config import Settings
from howl.connections.postgres import session
from howl.models import Worker
from howl.outcomes import is_id
from howl.queue_names import queue_of
from howl.server.maintenance.lease_reaper import fault_of_list, in_every_namespace, list_of, set_aside

#: The sorted set, in each namespace, of messages with their lists, by the time at which they came back.
UNKNOWN = "unknown"
#: Maximum messages of a namespace that are handled in one round.
AT_ONCE = 500


def put_back(client: Any, settings: Settings) -> None:
    """Put tasks back once it is clear whether a worker knows them; raises redis's errors or DatabaseUnavailable."""
    in_every_namespace(client, settings, lambda namespace: _put_back(client, settings, namespace))


def _put_back(client: Any, settings: Settings, namespace: Namespace) -> None:
    found = bounded_reads.scores(client, settings, namespace, UNKNOWN, bounded_reads.MESSAGES._replace(members=AT_ONCE))
    if not found:
        return
    faults_of = {name: fault_of_list(client, settings, namespace, name) for name in set(map(list_of, found))}
    with session(settings.database()) as opened:
        # Many may be of one task: its workers are asked for once.
        is_known = cache(partial(_is_known, client, settings, opened))
        for claim in found:
            name, _, message = claim.partition(b"\n")
            if fault := faults_of[name]:
                set_aside(client, settings, namespace, UNKNOWN, claim, fault)
            elif (known := is_known(name, _task_of(message))) is not None:
                _offer(client, settings, namespace, claim, message if known else message.rstrip() + NOBODY)


def _offer(client: Any, settings: Settings, namespace: Namespace, claim: bytes, message: bytes) -> None:
    name = list_of(claim)
    bell = settings.key(doorbell(_below_prefix(name, settings)))
    OFFER.run(client, [namespace.key(UNKNOWN), name, bell], [claim, message])


def _task_of(message: bytes) -> str | None:
    """Return the task's name; None if it cannot be read, or could be no task's: a stranger may have written it."""
    try:
        name = task_headers(parse(message, PARSED_BYTES))["task"]
    except NO_TASK:
        return None
    return name if is_id(name) else None


def _is_known(client: Any, settings: Settings, opened: Session, name: bytes, task: str | None) -> bool | None:
    """Return whether a living worker of the queue knows the task; None if there is none, or one has yet to say."""
    if task is None:
        return False
    queue = queue_of(_below_prefix(name, settings))
    knows = (Worker.tasks.is_not(None) & (literal(task) == any_(Worker.tasks))).label("knows")
    serve = (Worker.status == "active") & (literal(queue) == any_(Worker.queues))
    said = opened.execute(
        select(Worker.credential, knows, Worker.tasks.is_(None)).where(serve).distinct()
    ).all()  # at most four rows per credential
    # Any credential may announce any queue. A credential has the same name in Redis, if it exists there.
    users = set(users_of(client)) & {user for user, _, _ in said}
    others = {user for user in users if not may_push(client, user, name)}
    told = [(known, silent) for user, known, silent in said if user not in others]
    if any(known for known, _ in told):
        return True
    return None if not told or any(silent for _, silent in told) else False


def _below_prefix(name: bytes, settings: Settings) -> str:
    return name.decode(errors="replace").removeprefix(settings.key_prefix)
