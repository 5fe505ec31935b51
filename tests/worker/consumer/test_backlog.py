"""When nobody records, workers stop taking tasks before Redis is full, and go on when somebody does."""

from howl.queries.queues import survey
from tests import tasks
from tests.helpers.support import eventually


def test_workers_take_no_more_tasks_while_too_many_bytes_wait_to_be_recorded(
    start, env, start_worker, app, settings, task_row
):
    limit = settings.model_copy(update={"backlog_limit": 3 << 20})
    told = {"HOWL_BACKLOG_LIMIT": str(limit.backlog_limit)}
    worker = start_worker("w1", "--concurrency", "2", env=told)
    sent = [tasks.large.delay(900_000) for _ in range(30)]
    found = eventually(lambda: (seen := survey(limit))["held_up"] and not seen["owners"][0]["claimed"] and seen)
    (queue,) = found["queues"]
    assert queue["waiting"] > 10
    assert found["outcomes_bytes"] >= limit.backlog_limit
    eventually(lambda: "wait to be recorded" in worker.output)
    start("server", env=env)
    eventually(lambda: all((row := task_row(result.id)) and row.finished_at for result in sent))
    assert {task_row(result.id).status for result in sent} == {"succeeded"}
    assert worker.output.count("wait to be recorded") <= worker.output.count("taking tasks again") + 1
    assert not survey(limit)["held_up"]
