"""One push wakes one worker, and one that can do the work."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from howl.config import Settings
from howl.connections.redis import redis_client
from howl.worker.consumer.prefetch import PrefetchPolicy
from howl.worker.consumer.session import ConsumerSession
from tests.helpers.support import eventually

QUEUE = [["q"]]


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with redis_client(settings) as made:
        yield made


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Callable[..., ConsumerSession]]:
    """Start the session of an owner, with as many slots as the list given has entries."""
    running: list[ConsumerSession] = []

    def _ledger(owner: str, slots: list[None]) -> ConsumerSession:
        running.append(
            ConsumerSession(
                settings, owner, PrefetchPolicy(lambda: len(slots)), lambda _: None, lambda _: None, lambda *_: None
            )
        )
        running[-1].start()
        running[-1].listen(QUEUE)
        return running[-1]

    yield _ledger
    for each in running:
        each.close({})


def listening(client: Any) -> int:
    """How many wait for a doorbell."""
    return sum(known["cmd"] == "brpop" and "b" in known["flags"] for known in client.client_list())


def test_a_ring_for_a_worker_that_has_no_room_by_now_is_passed_on(
    ledger: Callable[..., ConsumerSession], client: Any, settings: Settings
) -> None:
    slots: list[None] = [None]
    busy = ledger("busy", slots)
    eventually(lambda: listening(client) == 1)
    slots.clear()
    busy.listen(QUEUE)  # it looks at its room, and sees that it has none
    assert listening(client) == 1, "it hung up: the bell would stay as it was rung"
    client.lpush(settings.key("doorbell:q"), 1)
    assert listening(client) == 0, "it was not the one that was woken"
    eventually(lambda: client.llen(settings.key("doorbell:q")) == 1, timeout=3)
