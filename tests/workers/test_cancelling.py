"""However a task is ended in a real Celery worker, the whole tree of its command ends, and its browser."""

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from tests.helpers.site import Site
from tests.helpers.support import Process, eventually, optional_program
from tests.workers.conftest import is_running
from tests.workers.plain_celery import configure
from workers.chromium import pool as browser_pool

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

    def _start(pool: str = "prefork", **variables: str) -> Process:
        options = f"-A tests.workers.plain_celery worker -P {pool} -c 1 --without-gossip --without-mingle"
        env = clean_environment(PLAIN_BROKER=client.conf.broker_url, PLAIN_PREFIX=prefix, **variables)
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
    result = submit(client, tree.argv(), time_limit=6)
    eventually(tree.is_gone)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)


def test_a_soft_time_limit_ends_the_whole_tree_and_the_worker_goes_on(start_plain_worker, client: Celery, tree):
    start_plain_worker()
    result = submit(client, tree.argv(), soft_time_limit=6)
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


@pytest.fixture
def hanging_page() -> Iterator[Site]:
    """A site whose one page never ends to load."""
    optional_program(*browser_pool.NAMES)
    with Site("127.0.0.1") as site:
        site.pages["/hanging"] = "<img src=/trickle>"
        yield site


def look_at(client: Celery, site: Site, worker: Process, **options: Any) -> tuple[Any, set[int]]:
    """A task that looks at the page, and the processes that are there for it."""
    result = client.send_task("browser.page", args=[site.url("/hanging")], kwargs={"timeout": 600}, **options)
    eventually(lambda: "/trickle" in site.asked)
    found = below(worker.pid)
    assert len(found) > 5
    return result, found


def below(root: int) -> set[int]:
    """All processes that descend from this one."""
    found = children(root)
    return found.union(*map(below, found))


def children(parent: int) -> set[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, timeout=20)
    return set(map(int, listed.stdout.split()))


def cancel(client: Celery, worker: Process, task: str) -> None:
    client.control.revoke(task, terminate=True)


def kill_the_child(client: Celery, worker: Process, task: str) -> None:
    (child,) = children(worker.pid)
    os.kill(child, signal.SIGKILL)


def kill_the_worker(client: Celery, worker: Process, task: str) -> None:
    worker.signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("pool", "end"),
    [("prefork", cancel), ("prefork", kill_the_child), ("prefork", kill_the_worker), ("threads", kill_the_worker)],
)
def test_however_a_task_with_a_browser_is_ended_no_process_of_it_stays(
    start_plain_worker, client: Celery, hanging_page: Site, pool: str, end: Callable[[Celery, Process, str], None]
):
    worker = start_plain_worker(pool, HOWL_WEB_ALLOW_PRIVATE="1")
    result, found = look_at(client, hanging_page, worker)
    end(client, worker, result.id)
    eventually(lambda: not any(map(is_running, found)))


def test_a_soft_time_limit_ends_the_browser_and_the_next_task_has_another(
    start_plain_worker, client: Celery, hanging_page: Site
):
    worker = start_plain_worker(HOWL_WEB_ALLOW_PRIVATE="1")
    child = below(worker.pid)
    look = client.signature("browser.page", args=[hanging_page.url("/page")])
    assert look.delay().get(timeout=60)["status"] == 200  # the browser is there: starting one would take of the time
    result, found = look_at(client, hanging_page, worker, soft_time_limit=6)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=40)
    eventually(lambda: not any(map(is_running, found - child)))
    assert look.delay().get(timeout=60)["status"] == 200
