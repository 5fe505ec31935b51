"""How many messages a worker holds: what keeps it busy, and nothing that another could begin at once."""

from datetime import UTC, datetime, timedelta

import pytest
import redis

from tests import tasks
from tests.helpers.support import eventually


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_no_task_waits_behind_a_long_one_while_another_worker_idles(pool, start_worker, app, tmp_path):
    for worker in ("w1", "w2"):
        start_worker(worker, "--pool", pool, "--concurrency", "1")
    diary = tmp_path / "diary"
    diary.touch()
    _end(app, tmp_path / "run of short ones", [])
    for number in range(3):
        gate = tmp_path / f"gate {number}"
        _end(app, tmp_path / str(number), [tasks.gated.s(str(diary), str(gate))])
        gate.touch()
        eventually(lambda done=number + 1: diary.read_text().count("ended") == done)


def _end(app, file, long):
    """Send short tasks at once, so that a worker finds them all, with long ones among them; all the short ones end."""
    file.touch()
    short = [tasks.noted.s(str(file), str(number)) for number in range(59 if long else 600)]
    with app.producer_pool.acquire() as producer, producer.batch(max_size=1000):
        for task in [*short[:20], *long, *short[20:]]:
            task.apply_async(producer=producer)
    eventually(lambda: len(file.read_text().splitlines()) == len(short))


def test_ten_thousand_tasks_of_much_later_are_parked_and_the_worker_holds_none(start_worker, app, client, settings):
    number, later = 10_000, datetime.now(UTC) + timedelta(hours=1)
    with app.producer_pool.acquire() as producer, producer.batch(max_size=1000):
        for _ in range(number):
            tasks.noop.apply_async(eta=later, producer=producer)
    start_worker("w1", "--concurrency", "2")
    now = tasks.noop.delay()
    eventually(lambda: _outcome_of(client, settings, now.id))
    assert client.zcard(settings.key("parked")) == number
    assert eventually(lambda: app.control.inspect(timeout=2).reserved()) == {"celery@w1": []}
    eventually(lambda: not client.keys(f"{settings.key_prefix}claims:*"))


def _outcome_of(client, settings, task_id):
    return [entry for _, entry in client.xrange(settings.key("outcomes")) if task_id.encode() in entry[b"outcome"]]
