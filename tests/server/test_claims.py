"""What the keeper notices of leases."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from howl.backend import redis_client
from howl.config import Settings
from howl.server.claims import SharedNames


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
