"""`howl worker`: what it makes of its command line."""

import pytest
from click.testing import CliRunner

from howl import config
from howl.cli import main
from howl.cli import worker as command
from howl.worker.lifecycle.run import WorkerOptions
from tests.cli.test_cli import modules_after


@pytest.fixture
def started(monkeypatch):
    """What `howl worker` would start, instead of starting it."""
    seen = []
    monkeypatch.setattr(command, "run", seen.append)

    def _started(*line):
        answer = CliRunner().invoke(main, ["worker", *line])
        assert answer.exit_code == 0, answer.output
        return seen.pop()

    return _started


def test_without_options_a_worker_is_what_its_settings_say(started):
    assert started() == WorkerOptions()


def test_options_have_the_short_names_that_celerys_have(started):
    wanted = WorkerOptions(name="w1", concurrency=3, queues=("a", "b"), pool="threads")
    assert started(*["-n", "w1", "-c", "3", "-Q", "a,b", "-P", "threads"]) == wanted


def test_every_option_reaches_the_worker(started):
    line = (
        "--name w1 --runtime 30m --grace 10s --idle-exit 5m --concurrency 3 --queues a,b --tags x,y --pool threads "
        "--origin docker -v"
    )
    assert started(*line.split()) == WorkerOptions(
        name="w1", runtime=1800.0, grace=10.0, idle_exit=300.0, concurrency=3, queues=("a", "b"), tags=("x", "y"),
        pool="threads", origin="docker", loglevel="DEBUG",
    )  # fmt: skip


def test_a_runtime_that_its_grace_would_use_up_is_refused_with_status_1(env):
    answer = CliRunner().invoke(main, ["worker", "--runtime", "30s", "--grace", "30s"], env=env)
    assert (answer.exit_code, "must be longer than the grace" in answer.output) == (1, True)
    assert not config._kept, "this process is taken for a worker"


#: All that a running worker has loaded: Celery's worker, our steps in it, the transport and the tasks.
BOOTED = """
import celery.apps.worker, howl.cli.doctor, howl.cli.worker, howl.broker.transport
from kombu.utils.imports import symbol_by_name
from howl.celery import app
app.loader.import_default_modules()
[symbol_by_name(step) for steps in app.steps.values() for step in steps]
"""


def test_a_worker_loads_nothing_that_only_servers_and_people_need(worker_env):
    loaded = modules_after(f"exec({BOOTED!r})", env=worker_env)
    assert {"celery", "nats", "redis", "workers"} <= loaded
    assert not loaded & {"alembic", "click_repl", "flower", "mcp", "prompt_toolkit", "psycopg", "sqlalchemy"}
