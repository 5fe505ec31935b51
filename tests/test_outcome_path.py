"""From a task's end on a worker that knows no PostgreSQL, to a client that reads the result from it."""

import uuid
from datetime import date
from decimal import Decimal

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from tests import tasks
from tests.helpers.support import PATIENCE, eventually


@pytest.fixture(autouse=True)
def running(server, start_worker, app):
    """The server, one worker, and a client's application."""
    return start_worker("w1", "--concurrency", "2")


def test_a_result_reaches_a_client_and_its_row_tells_where_and_how_long_it_ran(task_row):
    result = tasks.add.delay(2, 3)
    assert result.get(timeout=PATIENCE) == 5
    row = task_row(result.id)
    assert (row.status, row.worker_id, row.attempts, row.name) == ("succeeded", "w1", 1, "tests.add")
    assert (row.args, row.kwargs, row.queue) == ([2, 3], {}, "celery")
    assert row.started_at <= row.finished_at
    assert 0 <= row.runtime < PATIENCE


def test_a_failure_is_raised_again_at_the_client_and_recorded_with_its_traceback(task_row):
    result = tasks.fail.delay("no such luck")
    with pytest.raises(ValueError, match="no such luck"):
        result.get(timeout=PATIENCE)
    assert result.backend.get_state(result.id) == result.state == "FAILURE"
    row = task_row(result.id)
    assert (row.status, row.error_type, row.error_message) == ("failed", "ValueError", "no such luck")
    assert "in fail" in row.traceback


def test_waiting_for_a_task_that_has_not_ended_stops_in_time():
    with pytest.raises(CeleryTimeoutError):
        tasks.sleep.delay(5).get(timeout=0.5)


def test_groups_chains_and_chords_work():
    assert group(tasks.add.s(i, i) for i in range(5)).delay().get(timeout=PATIENCE) == [0, 2, 4, 6, 8]
    assert chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4)).delay().get(timeout=PATIENCE) == 10
    assert chord([tasks.add.s(i, 1) for i in range(5)], tasks.total.s()).delay().get(timeout=PATIENCE) == 15


def test_a_chord_in_a_chain_and_a_chord_of_chains_and_groups_work():
    chained = chain(tasks.add.s(1, 1), group(tasks.add.s(1), tasks.add.s(2)), tasks.total.s(), tasks.add.s(100))
    assert chained.delay().get(timeout=PATIENCE) == 107
    nested = chord([chain(tasks.add.s(1, 1), tasks.add.s(1)), chord([tasks.add.s(1, 1)] * 2, tasks.total.s())],
                   tasks.total.s())  # fmt: skip
    assert nested.delay().get(timeout=PATIENCE) == 7


def test_tasks_that_become_groups_in_chains_end_as_the_groups_do():
    assert tasks.become_chain.delay().get(timeout=PATIENCE) == [4, 4]
    assert chain(tasks.become_chain.s(), tasks.total.s()).delay().get(timeout=PATIENCE) == 8
    body = tasks.add_to_all.s(5) | tasks.total.s()
    assert chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], body).delay().get(timeout=PATIENCE) == 16


def test_a_chord_with_a_failing_part_fails_its_body_and_says_why(app):
    body = chord([tasks.add.s(1, 1), tasks.fail.s("part two")], tasks.total.s()).delay()
    with pytest.raises(ChordError, match="part two"):
        app.AsyncResult(body.id).get(timeout=PATIENCE)


def test_a_chord_whose_part_is_a_failing_chain_fails_its_body(app):
    body = chord([tasks.add.s(1, 1), chain(tasks.fail.si("early"), tasks.add.si(1, 1))], tasks.total.s()).delay()
    with pytest.raises(ChordError, match="early"):
        app.AsyncResult(body.id).get(timeout=PATIENCE)


def test_a_chain_whose_first_task_fails_fails_to_its_end():
    result = chain(tasks.fail.si("first"), tasks.add.si(1, 1)).delay()
    with pytest.raises(ValueError, match="first"):
        result.get(timeout=PATIENCE)


def test_a_saved_group_is_restored_with_its_results(app):
    result = group(tasks.add.s(i, i) for i in range(3)).delay()
    result.save()
    assert app.GroupResult.restore(result.id).get(timeout=PATIENCE) == [0, 2, 4]


def test_a_retried_task_is_recorded_with_its_attempts_and_no_trace_of_the_failures(task_row, tmp_path):
    result = tasks.flaky.delay(str(tmp_path / "runs"), 2)
    assert result.get(timeout=PATIENCE) == 3
    row = task_row(result.id)
    assert (row.status, row.attempts, row.error_type, row.traceback) == ("succeeded", 3, None, None)


def test_progress_shows_while_a_task_runs(tmp_path):
    go_on = tmp_path / "go-on"
    result = tasks.report.delay(str(go_on))
    eventually(lambda: result.state == "HALFWAY")
    assert result.info == {"done": 1, "total": 2}
    go_on.touch()
    assert result.get(timeout=PATIENCE) == "done"
    assert result.state == "SUCCESS"


def test_a_task_that_ignores_its_result_is_recorded_without_it(task_row):
    result = tasks.quiet.delay()
    row = eventually(lambda: (found := task_row(result.id)) and found.finished_at and found)
    assert (row.status, row.result) == ("succeeded", None)


def test_what_jsonb_would_change_is_read_as_it_was_told_and_recorded_as_its_like(task_row):
    told = [
        float("nan"),
        float("-inf"),
        "a\x00b",
        "\ud800",
        {"b": 1, "a": {"z": 1, "y\x00": 2}},
        1e16,
        -1e300,
        -0.0,
        5e-324,
    ]
    told += [uuid.UUID(int=7), Decimal("1.10"), date(2026, 1, 2), b"\xff", 2**70, 1.0, True, None, {}, []]
    single = tasks.echo.delay(told)
    assert repr(single.get(timeout=PATIENCE)) == repr(told)
    assert repr(single.args) == repr([told])
    assert task_row(single.id).result[:4] == ["NaN", "-Infinity", "a\ufffdb", "\ufffd"]
    chained = chain(tasks.echo.s(told), tasks.echo.s()).delay()
    assert repr(chained.get(timeout=PATIENCE)) == repr(told)
    joined = chord([tasks.echo.s(told), tasks.echo.s(1)], tasks.echo.s()).delay()
    assert repr(joined.get(timeout=PATIENCE)) == repr([told, 1])


def test_exceptions_come_back_with_the_arguments_that_they_had(task_row):
    for what, error in tasks.ERRORS.items():
        result = tasks.fail_with.delay(what)
        with pytest.raises(type(error)) as raised:
            result.get(timeout=PATIENCE)
        assert raised.value.args == error.args
        assert "__type__" not in task_row(result.id).error_message


def test_a_result_larger_than_an_outcome_may_be_fails_the_task_and_says_so(task_row):
    result = tasks.large.delay(2_000_000)
    row = eventually(lambda: (found := task_row(result.id)) and found.finished_at and found)
    assert row.status == "failed"
    assert "1,048,576 are allowed" in row.error_message


def test_dates_and_uuids_come_back_as_they_were():
    value = {"when": "2026-11-22", "big": 2**70, "empty": [], "deep": [[[{}]]]}
    assert tasks.echo.delay(value).get(timeout=PATIENCE) == value


def test_the_worker_is_told_nothing_of_postgresql():
    environment = tasks.environment.delay().get(timeout=PATIENCE)
    assert not [name for name in environment if "DATABASE" in name or name.startswith(("PG", "POSTGRES"))]
