"""What only Redis knows, as `howl queues` shows it; and tasks that get another chance."""

import json

import pytest
import redis

from howl.errors import InvalidRequest, UnknownTask
from howl.queries.queues import survey
from howl.submission import TaskRequest, cancel, retry, submit
from tests.helpers.support import eventually


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


def _request(**given) -> TaskRequest:
    return TaskRequest(**({"name": "tests.add", "args": [1, 2]} | given))


def test_what_waits_is_counted_over_all_priorities(session, app, settings):
    for priority in (0, 3, 9):
        submit(_request(queue="fast", priority=priority), session, app)
    assert survey(settings)["queues"] == [{"queue": "fast", "waiting": 3, "claimed": 0, "owners": []}]


def test_what_a_worker_holds_is_shown_with_its_owner(server, start_worker, session, app, settings):
    start_worker("w1", "--concurrency", "1")
    submit(_request(name="tests.sleep", args=[30]), session, app)
    found = eventually(lambda: (seen := survey(settings)) and seen["owners"] and seen["owners"][0]["begun"] and seen)
    assert found["owners"][0]["owner"].startswith("celery@w1.")
    assert found["queues"][0]["claimed"] == 1


def test_the_command_prints_json(start, env, session, app):
    submit(_request(), session, app)
    process = start("queues", "--json", env=env)
    assert process.wait() == 0
    found = json.loads(process.output)
    assert found["queues"][0]["queue"] == "celery"
    assert found["queues"][0]["oldest"] >= 0
    assert found["in_flight"] == 1


def test_a_failed_task_is_retried_as_the_same_task(server, start_worker, session, app, task_row, tmp_path):
    start_worker("w1", "--concurrency", "1")
    flag = tmp_path / "runs"
    task_id = submit(_request(name="tests.flaky", args=[str(flag), 6]), session, app)
    eventually(lambda: task_row(task_id).status == "failed")
    retry(task_id, session, app)
    row = eventually(lambda: (row := task_row(task_id)).status == "succeeded" and row)
    assert (row.result, row.error) == (7, None)


def test_only_what_ended_badly_is_retried(session, app):
    task_id = submit(_request(), session, app)
    with pytest.raises(InvalidRequest, match="is queued"):
        retry(task_id, session, app)
    with pytest.raises(UnknownTask):
        retry("nobody", session, app)


def test_a_cancelled_task_does_not_start_on_a_worker_that_starts_later(
    server, start_worker, session, app, client, settings, task_row
):
    task_id = submit(_request(), session, app)
    raw = client.lindex(settings.key("celery"), -1)
    assert cancel(task_id, session, app) == "queued"
    eventually(lambda: task_row(task_id).status == "cancelled")
    client.lpush(settings.key("celery"), raw)  # as if a dead worker's claim came back
    worker = start_worker("w1", "--concurrency", "1")
    eventually(lambda: not client.llen(settings.key("celery")))
    eventually(lambda: "Discarding revoked task" in worker.output)
    assert "succeeded" not in worker.output
