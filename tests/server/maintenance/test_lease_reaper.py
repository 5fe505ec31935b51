"""What the keeper notices of leases."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from howl.config import Settings
from howl.connections.redis import redis_client
from howl.models import Worker
from howl.server.maintenance.keeper import Keeper
from howl.server.maintenance.lease_reaper import SharedNames
from howl.submission import TaskRequest, submit


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis_client(settings) as made:
        yield made


def renew(client: Any, settings: Settings, **deadlines: int) -> None:
    """Lives of a worker named w1, each with its deadline."""
    client.zadd(settings.key("leases"), {f"celery@w1.{life}": deadline for life, deadline in deadlines.items()})


def test_two_workers_of_one_name_are_told_of_once(
    settings: Settings, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = SharedNames()
    with caplog.at_level(logging.WARNING):
        for deadline in (1000, 2000, 3000):
            renew(client, settings, one=deadline, two=deadline + 1)
            names.look(client, settings)
    assert [record.getMessage().count("the same name celery@w1") for record in caplog.records] == [1]


def test_a_worker_that_was_replaced_under_its_name_is_no_reason_to_warn(
    settings: Settings, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = SharedNames()
    with caplog.at_level(logging.WARNING):
        for deadline in (1000, 2000, 3000):
            renew(client, settings, dead=1000, alive=deadline)
            names.look(client, settings)
    assert caplog.records == []


def test_a_silent_worker_whose_lease_runs_still_gets_its_tasks_until_the_lease_ends(
    settings: Settings, client: Any, session: Session, app: Celery
) -> None:
    session.add_all([Worker(worker_id=name, last_heartbeat_at=func.now()) for name in ("w1", "leaving")])
    session.commit()
    tasks = {name: submit(TaskRequest(name="tests.noop", worker_id=name), session, app) for name in ("w1", "leaving")}
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    for name, status in (("w1", "lost"), ("leaving", "offline")):
        session.execute(update(Worker).where(Worker.worker_id == name).values(
            status=status, last_heartbeat_at=long_ago, offline_at=long_ago))  # fmt: skip
    session.commit()
    seconds, _ = client.time()
    client.zadd(settings.key("leases"), {f"celery@{name}.boot": (seconds + 30) * 1000 for name in ("w1", "leaving")})
    keeper = Keeper(settings, app)
    keeper.fail_what_nobody_can_start()
    assert failed(client, settings) == [tasks["leaving"]], "who says goodbye is believed, who falls silent is not"
    client.zadd(settings.key("leases"), {"celery@w1.boot": (seconds - 1) * 1000})
    keeper.fail_what_nobody_can_start()
    assert tasks["w1"] in failed(client, settings)


def failed(client: Any, settings: Settings) -> list[str]:
    """Ids of the tasks whose end waits to be recorded."""
    return [json.loads(fields[b"outcome"])["task_id"] for _, fields in client.xrange(settings.key("outcomes"))]
