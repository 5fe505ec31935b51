"""What is revoked holds for workers that do not hear it now, whichever way it was ordered."""

from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from howl.config import Settings


@pytest.fixture
def kept(settings: Settings) -> Any:
    """What each turn tells workers."""
    with redis.Redis.from_url(settings.redis(), decode_responses=True) as client:
        yield lambda: [fields for _, fields in client.xrange(settings.key("revoked"))]


WAYS = {
    "revoke": (lambda app: app.control.revoke("a"), [{"task_id": "a"}]),
    "revoke several": (lambda app: app.control.revoke(["a", "b"]), [{"task_id": "a"}, {"task_id": "b"}]),
    "revoke and terminate": (
        lambda app: app.control.revoke("a", terminate=True), [{"task_id": "a", "terminate": "SIGTERM"}],
    ),
    "terminate": (
        lambda app: app.control.terminate("a", signal="SIGKILL"), [{"task_id": "a", "terminate": "SIGKILL"}],
    ),
    "a result's": (
        lambda app: AsyncResult("a", app=app).revoke(terminate=True), [{"task_id": "a", "terminate": "SIGTERM"}],
    ),
    "celery control revoke": (
        lambda app: app.control.broadcast("revoke", arguments={"task_id": ["a", "b"]}),
        [{"task_id": "a"}, {"task_id": "b"}],
    ),
    "celery control terminate": (
        lambda app: app.control.broadcast("terminate", arguments={"signal": "KILL", "task_id": ["a"]}),
        [{"task_id": "a", "terminate": "KILL"}],
    ),
    "by stamps": (
        lambda app: app.control.revoke_by_stamped_headers({"who": ["x"]}, terminate=True),
        [{"task_id": "", "terminate": "SIGTERM", "stamps": '{"who": ["x"]}'}],
    ),
    "celery control revoke_by_stamped_headers": (
        lambda app: app.control.broadcast("revoke_by_stamped_headers", arguments={"headers": ["who=x"]}),
        [{"task_id": "", "terminate": "", "stamps": '{"who": "x"}'}],
    ),
    "for one worker alone": (lambda app: app.control.revoke("a", destination=["celery@w1"]), []),
    "something else": (lambda app: app.control.broadcast("ping"), []),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_is_revoked_is_kept_for_those_who_do_not_hear_it_now(app: Celery, kept: Any, way: str) -> None:
    order, expected = WAYS[way]
    order(app)
    assert kept() == expected
