"""Ids that people choose: what Celery runs, runs here; what cannot be recorded is refused where it is given."""

import uuid

import pytest
from celery import chain, chord, group

from howl.broker.message import task_headers
from howl.errors import InvalidRequest
from tests import tasks
from tests.helpers.support import PATIENCE, eventually

#: Too long, NUL, half a character, and what is no text.
UNFIT = ("x" * 256, "a\x00b", "\ud800", b"abc", 5)
REFUSED = "cannot be the id or name of a task"


def _nothing_is_published(app, settings):
    waiting = app.backend.redis.llen(settings.key("celery")), app.backend.redis.xlen(settings.key("outcomes"))
    return waiting == (0, 0)


def test_an_id_that_cannot_be_recorded_is_refused_where_it_is_given(app, settings):
    for unfit in UNFIT:
        for name in ("task_id", "group_id", "root_id", "parent_id"):
            with pytest.raises(InvalidRequest, match=REFUSED):
                tasks.noop.apply_async(**{name: unfit})
        with pytest.raises(InvalidRequest, match=REFUSED):
            app.AsyncResult(unfit).get(timeout=5)
    app.conf.task_protocol = 1
    del app.amqp.create_task_message
    with pytest.raises(InvalidRequest, match=REFUSED):
        tasks.noop.apply_async(task_id=UNFIT[0])
    assert _nothing_is_published(app, settings)


def test_nothing_of_a_canvas_is_published_if_an_id_in_it_cannot_be_recorded(app, settings):
    fit, unfit = tasks.noop.si(), tasks.noop.si().set(task_id=UNFIT[0])
    canvases = {
        "a chain's second": chain(fit, unfit),
        "a group in a chain": chain(fit, group(fit, unfit)),
        "a chord's part": chord([fit, unfit], fit),
        "a chord's body": chord([fit, fit], unfit),
        "an error callback": fit.clone().on_error(unfit),
    }
    for name, canvas in canvases.items():
        with pytest.raises(InvalidRequest, match=REFUSED):
            canvas.apply_async()
        assert _nothing_is_published(app, settings), name


def test_a_message_of_another_application_may_have_uuids_for_ids():
    marked = {"__type__": "uuid", "__value__": {"hex": uuid.UUID(int=1).hex}}
    said = task_headers({"headers": {"id": marked, "root_id": uuid.UUID(int=2), "parent_id": None, "group": "own"}})
    assert said == {"id": str(uuid.UUID(int=1)), "root_id": str(uuid.UUID(int=2)), "parent_id": None, "group": "own"}


def test_uuids_are_ids_as_they_are(server, start_worker, app, task_row):
    """Also of what is in a canvas, in both of Celery's protocols, and when a task is to be stopped."""
    start_worker("w1", "--concurrency", "2")
    single, part, body = (uuid.uuid4() for _ in range(3))
    assert tasks.echo.apply_async(("one",), task_id=single).get(timeout=PATIENCE) == "one"
    assert task_row(str(single)).status == "succeeded"
    assert app.AsyncResult(single).state == "SUCCESS"
    parts = [tasks.add.s(1, 1).set(task_id=part), tasks.add.s(2, 2)]
    assert chord(parts, tasks.total.s()).apply_async(task_id=body).get(timeout=PATIENCE) == 6
    assert task_row(str(part)).status == task_row(str(body)).status == "succeeded"
    linked = chain(tasks.add.s(1, 1), tasks.add.s(3).set(task_id=uuid.uuid4()))
    assert linked.apply_async().get(timeout=PATIENCE) == 5
    app.conf.task_protocol = 1
    del app.amqp.create_task_message
    assert tasks.echo.apply_async(("old",), task_id=uuid.uuid4()).get(timeout=PATIENCE) == "old"
    held = tasks.sleep.apply_async((600,), task_id=uuid.uuid4())
    eventually(lambda: held.state == "STARTED")
    app.control.revoke(held.id, terminate=True, signal="SIGKILL")
    eventually(lambda: task_row(str(held.id)).status == "cancelled")
