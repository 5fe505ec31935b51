"""What is promised when something breaks, in short; `make faults` tries the same in full."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.ground import Account, Ground
from benchmarks.faults.scenarios import SCENARIOS
from howl.config import Settings
from howl.embedded.stack import Stack


@pytest.fixture
def ground(stack: Stack, settings: Settings, tmp_path: Path) -> Iterator[Ground]:
    """Servers and a namespace in which a lease lasts two seconds."""
    short = settings.model_copy(update={"lease": 2.0, "push_again_after": 3.0})
    with Ground(stack, short, tmp_path) as made:
        yield made


def tried(name: str, ground: Ground) -> Account:
    """The account of a scenario in short, whose general promises were kept."""
    scenario = SCENARIOS[name]
    account = scenario.run(ground, **scenario.short)
    assert scenario.broken_promises(account) == {}, account
    assert account.tasks > 0
    return account


def test_what_the_witness_cannot_read_in_time_is_counted_all_the_same(ground: Ground) -> None:
    ground.reader.signal(signal.SIGSTOP)
    ground.server()
    ground.worker("w1")
    ground.publish(5, 0)
    account = ground.account()
    assert account.unseen == 0
    assert sum(ground.witness.finals.values()) == 5


def test_killed_workers_lose_no_task_and_only_what_ran_starts_again(ground: Ground) -> None:
    assert tried("mains-killed", ground).started_again > 0


def test_killed_children_lose_no_task_and_only_what_ran_starts_again(ground: Ground) -> None:
    assert tried("children-killed", ground).started_again > 0


def test_what_a_worker_says_after_its_lease_ran_out_does_not_count(ground: Ground) -> None:
    account = tried("worker-stopped", ground)
    assert account.started_again > 0
    assert account.stale > 0


def test_a_task_longer_than_the_lease_starts_once(ground: Ground) -> None:
    assert tried("task-outlasts-lease", ground).started_again == 0


def test_cut_connections_are_not_noticed(ground: Ground) -> None:
    assert tried("connection-cut", ground).faults > 0


def test_cut_connections_of_a_pool_of_threads_are_not_noticed(ground: Ground) -> None:
    assert tried("connection-of-threads-cut", ground).faults > 0


def test_a_redis_that_lost_its_last_second_loses_no_submitted_task(ground: Ground) -> None:
    assert tried("redis-forgets", ground).started_again > 0


def test_servers_that_are_restarted_in_turn_lose_no_task_and_start_none_again(ground: Ground) -> None:
    assert tried("servers-restarted", ground).faults == 3


def test_forgotten_scripts_are_not_noticed(ground: Ground) -> None:
    assert tried("scripts-flushed", ground).faults > 0


def test_a_recorder_that_dies_after_its_commit_leaves_each_end_recorded_once(ground: Ground) -> None:
    assert tried("recorder-killed", ground).faults > 0


def test_messages_that_nobody_can_read_are_set_aside_and_their_neighbours_are_not(ground: Ground) -> None:
    assert tried("garbage", ground).faults > 0


def test_two_workers_of_one_name_share_nothing(ground: Ground) -> None:
    tried("same-name", ground)
