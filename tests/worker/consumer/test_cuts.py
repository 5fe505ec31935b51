"""Cut connections are the session's affair: nothing of Celery's sees a short one."""

from urllib.parse import urlsplit

import pytest
import redis

from howl.submission import TaskRequest, cancel, submit
from tests import tasks
from tests.helpers.roads import Road
from tests.helpers.support import PATIENCE, eventually


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_celery_does_not_notice_that_all_connections_were_cut(pool, server, start_worker, app, client):
    worker = start_worker("w1", "--concurrency", "4", "--pool", pool)
    running = [tasks.sleep.delay(2) for _ in range(4)]
    eventually(lambda: client.keys("*claims:*"))
    for _ in range(3):
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    more = [tasks.add.apply_async((i, i), retry=True) for i in range(20)]
    assert [result.get(timeout=PATIENCE) for result in running] == [2] * 4
    assert [result.get(timeout=PATIENCE) for result in more] == [2 * i for i in range(20)]
    assert "Connection to broker lost" not in worker.output
    assert eventually(lambda: app.control.ping(timeout=2)) == [{"celery@w1": {"ok": "pong"}}]


@pytest.fixture
def road(stack):
    """A worker's way to Redis."""
    with Road(urlsplit(stack.urls.redis_url).port) as opened:
        yield opened


def test_a_task_is_cancelled_though_its_workers_connections_are_dead_without_its_knowing(
    server, start_worker, app, session, stack, road, task_row
):
    url = urlsplit(stack.urls.redis_url)
    through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{road.port}").geturl()
    start_worker("w1", "--concurrency", "1", env={"HOWL_REDIS_URL": through, "HOWL_LEASE": "3"})
    task_id = submit(TaskRequest(name="tests.sleep", args=[60]), session, app)
    eventually(lambda: task_row(task_id).status == "started")
    road.dies()
    assert cancel(task_id, session, app) == "started"
    eventually(lambda: task_row(task_id).status == "cancelled")
