"""However a command's task is ended in a real Celery worker, the command's whole tree ends."""

import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from tests.support import Process, eventually
from tests.workers.plain_celery import configure

pytestmark = pytest.mark.servers


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}:"


@pytest.fixture
def client(stack: Stack, prefix: str) -> Iterator[Celery]:
    made = configure(Celery("client", set_as_current=False), stack.urls.redis_url, prefix)
    yield made
    made.close()


@pytest.fixture
def start_plain_worker(start: Callable[..., Process], client: Celery, prefix: str) -> Callable[..., Process]:
    """Start a stock Celery worker with one place for tasks; returns when it answers."""

    def _start(pool: str = "prefork") -> Process:
        options = f"-A tests.workers.plain_celery worker -P {pool} -c 1 --without-gossip --without-mingle"
        env = clean_environment(PLAIN_BROKER=client.conf.broker_url, PLAIN_PREFIX=prefix)
        worker = start(*options.split(), env=env, program="celery")
        eventually(lambda: client.control.ping(timeout=0.5) or worker.popen.poll() is not None)
        assert worker.popen.poll() is None, worker.output
        return worker

    return _start


def submit(client: Celery, argv: list[str], **options: Any) -> Any:
    return client.send_task("command.run", args=[argv], **options)


def test_cancelling_a_task_ends_the_whole_tree(start_plain_worker, client: Celery, tree):
    start_plain_worker()
    result = submit(client, tree.argv())
    eventually(tree.is_complete)
    client.control.revoke(result.id, terminate=True)
    eventually(tree.is_gone)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)


def test_a_hard_time_limit_ends_the_whole_tree(start_plain_worker, client: Celery, tree):
    start_plain_worker()
    result = submit(client, tree.argv(), time_limit=2)
    eventually(tree.is_complete)
    eventually(tree.is_gone)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)


def test_a_soft_time_limit_ends_the_whole_tree_and_the_worker_goes_on(start_plain_worker, client: Celery, tree):
    start_plain_worker()
    result = submit(client, tree.argv(), soft_time_limit=2)
    eventually(tree.is_complete)
    eventually(tree.is_gone)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=20)
    assert submit(client, ["echo", "well"]).get(timeout=20)["stdout"] == "well\n"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_is_killed_outright_takes_the_whole_tree_along(
    start_plain_worker, client: Celery, tree, pool: str
):
    worker = start_plain_worker(pool)
    submit(client, tree.argv())
    eventually(tree.is_complete)
    worker.signal(signal.SIGKILL)
    eventually(tree.is_gone)


def test_a_tasks_error_reaches_a_client_elsewhere_with_its_name_and_text(start_plain_worker, client: Celery):
    start_plain_worker()
    result = submit(client, ["no-such-program"])
    result.get(timeout=20, propagate=False)
    assert type(result.result).__name__ == "CommandNotStarted"
    assert "no-such-program" in str(result.result)
