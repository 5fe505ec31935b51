"""A worker whose clock is an hour off starts, expires and retries tasks when the server's clock says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from howl.worker.consumer.server_clock import ServerClock
from tests.helpers.crew import ROOT, said

HOUR = 3600
CROOKED = {"behind": -HOUR, "ahead": HOUR}


@pytest.fixture(scope="module")
def crew(enlist):
    """Two workers with wrong clocks, each with a queue of its own."""
    made = enlist("solo")
    env = {name: value for name, value in made.env.items() if name != "HOWL_DATABASE_URL"}
    path = f"{Path(__file__).parents[2] / 'helpers' / 'crooked'}:{ROOT}"
    for name, ahead in CROOKED.items():
        words = ("--name", name, "--concurrency", "1", "--queues", name)
        said(made.run("worker", *words, env=env | {"CLOCK_AHEAD": str(ahead), "PYTHONPATH": path}), " ready.")
    return made


@pytest.fixture(params=CROOKED)
def queue(request):
    return request.param


def now():
    return datetime.now(UTC)


def test_a_task_expires_by_the_servers_clock(crew, queue):
    fresh = crew.send("echo", queue=queue, expires=now() + timedelta(minutes=10))
    late = crew.send("echo", queue=queue, expires=now() - timedelta(seconds=1))
    assert (crew.ended(fresh).status, crew.ended(late).status) == ("succeeded", "expired")


def test_a_task_starts_when_it_is_due_by_the_servers_clock(crew, queue):
    due = now() + timedelta(seconds=2)
    row = crew.ended(crew.send("echo", queue=queue, eta=due))
    assert (row.status, row.started_at > due - timedelta(seconds=0.5)) == ("succeeded", True)


def test_a_retry_waits_as_long_as_it_was_told(crew, queue):
    task_id = crew.send("retry", 2, queue=queue)
    assert crew.ended(task_id).status == "succeeded"
    retried, ended = (event.at for event in crew.events(task_id) if event.kind != "started")
    assert ended - retried > timedelta(seconds=1.5)


# --- the clock alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answered", "there", "ahead"),
    [
        (100, 110, 105, 0),
        (100, 100.1, 100.09, 0),
        (100.0007, 100.0009, 100, 0),
        (100, 100.2, 3700.1, 3600.0005),
        (100, 101, 40.5, -59.9995),
    ],
)
def test_what_an_answer_cannot_prove_wrong_stays_as_it_is(asked, answered, there, ahead):
    clock = ServerClock()
    clock.heard(asked, answered, there)  # whole milliseconds, as turn.lua says them
    assert clock.ahead == pytest.approx(ahead, abs=1e-6)


def test_a_clock_that_is_set_right_is_believed_again():
    clock = ServerClock()
    clock.heard(100, 100.2, 3700.1)
    clock.heard(3700, 3700.2, 3700.1)
    assert clock.ahead == 0
