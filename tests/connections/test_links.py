"""A Redis or NATS that stands still, or the way to it, without closing: an answer in words, then a new connection."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from sqlalchemy.orm import Session

from howl import celery_settings
from howl.artifacts import download
from howl.celery import create_app
from howl.config import Settings
from howl.connections import nats
from howl.errors import ArtifactFailed, QueueUnavailable
from howl.models import Task
from howl.submission import TaskRequest, submit
from tests.helpers.roads import Road

pytestmark = pytest.mark.servers

#: Seconds that this takes at most, with limits of a second each: whoever repeats what was not answered takes longer.
SOON = 8.0


@pytest.fixture
def road(request: pytest.FixtureRequest, settings: Settings) -> Iterator[tuple[Road, Settings]]:
    """A road to a server, and the settings of who goes by it."""
    name: str = request.param
    url = urlsplit(getattr(settings, name))
    with Road(url.port or 0) as opened:
        through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{opened.port}").geturl()
        yield opened, settings.model_copy(update={name: through, "task_modules": ("tests.tasks",)})


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("road", ["redis_url"], indirect=True)
@pytest.mark.parametrize("before", ["a submission", "nothing"])
def test_a_submission_says_that_redis_does_not_answer_and_the_next_one_is_pushed(
    before: str, road: tuple[Road, Settings], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, settings = road
    monkeypatch.setattr(celery_settings, "ANSWER_TIMEOUT", 1)
    app = create_app(settings)
    app.set_current()
    request = TaskRequest(name="tests.add", args=[1, 2])
    if before != "nothing":
        assert pushed(submit(request, session, app), session)
    way.stands_still()
    with soon(), pytest.raises(QueueUnavailable, match=r"is recorded, but Redis cannot take it now"):
        submit(request, session, app)
    way.goes_on()
    assert pushed(submit(request, session, app), session)
    app.close()


def pushed(task_id: str, session: Session) -> bool:
    return session.get_one(Task, task_id, populate_existing=True).pushed_at is not None


@pytest.mark.parametrize("road", ["nats_url"], indirect=True)
def test_a_file_that_nats_does_not_give_is_said_so(
    road: tuple[Road, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    way, settings = road
    monkeypatch.setattr(nats, "CONNECT_TIMEOUT", 1.0)
    way.stands_still()
    row = {"name": "x", "location": "bucket/x", "task_id": "t", "size": 1, "sha256": "0" * 64}
    with soon(), pytest.raises(ArtifactFailed, match=r"could not be fetched from NATS"):
        download.fetch(settings, row, io.BytesIO())
