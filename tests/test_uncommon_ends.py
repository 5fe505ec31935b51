"""Ends of tasks that Celery reports in uncommon ways, or nearly not at all: each is recorded."""

import pytest
from sqlalchemy import func, select

from howl.connections import postgres
from howl.models import TaskEvent
from tests import tasks
from tests.helpers.support import PATIENCE, eventually


def _row_at_its_end(task_row, task_id):
    return eventually(lambda: (row := task_row(task_id)) and row.finished_at and row)


@pytest.mark.parametrize("what", ["an object", "a deep nest", "itself", "a huge number"])
def test_a_result_that_is_no_json_fails_its_task_and_says_so(what, server, start_worker, app, task_row):
    start_worker("w1", "--concurrency", "1")
    row = _row_at_its_end(task_row, tasks.strange.delay(what).id)
    assert row.status == "failed"
    assert row.error_message


def test_a_task_with_arguments_larger_than_an_outcome_may_be_is_done(server, start_worker, app, task_row):
    start_worker("w1", "--concurrency", "1")
    row = _row_at_its_end(task_row, tasks.length.delay("x" * 1_500_000).id)
    assert (row.status, row.result) == ("succeeded", 1_500_000)


def test_a_revoke_without_terminating_leaves_a_running_task_to_its_worker(
    server, start_worker, app, task_row, tmp_path, settings
):
    for name in ("w1", "w2"):
        start_worker(name, "--concurrency", "1")
    go_on = tmp_path / "go-on"
    result = tasks.report.delay(str(go_on))
    eventually(lambda: result.state == "HALFWAY")
    app.control.revoke(result.id, reply=True, timeout=3)
    go_on.touch()
    assert result.get(timeout=PATIENCE) == "done"
    with postgres.session(settings.database()) as session:
        ended = select(func.count()).select_from(TaskEvent).where(TaskEvent.kind == "cancelled")
        assert session.scalar(ended) == 0
