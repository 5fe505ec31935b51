"""How many messages a worker holds: what keeps it busy, and nothing that another could begin at once."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import redis

from tests import tasks
from tests.support import eventually


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_no_task_waits_behind_a_long_one_while_another_worker_idles(pool, start_worker, app, tmp_path):
    for worker in ("w1", "w2"):
        start_worker(worker, "--pool", pool, "--concurrency", "1")
    _began(app, tmp_path / "run of short ones", [0.0] * 600)
    long = 4.0
    for number in range(3):
        waited = _began(app, tmp_path / str(number), [long if place == 20 else 0.0 for place in range(60)])
        assert [round(seconds, 1) for seconds in waited if seconds > long / 2] == []


def _began(app, file, lengths):
    """Send tasks of these lengths at once; when all have ended, after how many seconds each began."""
    sent = time.time()
    file.touch()
    _send(app, [(str(file), str(place), length) for place, length in enumerate(lengths)])
    notes = eventually(lambda: len(lines := file.read_text().splitlines()) == len(lengths) and lines)
    return [float(note.split()[1]) - sent for note in notes]


def _send(app, wanted):
    """At once, so that a worker finds them all."""
    with app.producer_pool.acquire() as producer, producer.batch(max_size=1000):
        for arguments in wanted:
            tasks.noted.apply_async(arguments, producer=producer)


def test_ten_thousand_tasks_of_much_later_are_parked_and_the_worker_holds_none(start_worker, app, client, settings):
    number, later = 10_000, datetime.now(UTC) + timedelta(hours=1)
    with app.producer_pool.acquire() as producer, producer.batch(max_size=1000):
        for _ in range(number):
            tasks.noop.apply_async(eta=later, producer=producer)
    start_worker("w1", "--concurrency", "2")
    now = tasks.noop.delay()
    eventually(lambda: _outcome_of(client, settings, now.id))
    assert client.zcard(settings.key("parked")) == number
    assert eventually(lambda: app.control.inspect(timeout=2).scheduled()) == {"celery@w1": []}
    eventually(lambda: not client.keys(f"{settings.key_prefix}claims:*"))


def _outcome_of(client, settings, task_id):
    return [entry for _, entry in client.xrange(settings.key("outcomes")) if task_id.encode() in entry[b"outcome"]]
