"""A worker is known by its node's name: what stands before the @ as well, unless that is Celery's own `celery`."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from howl.node_names import node_name_of, worker_id_of
from howl.remote_shutdown import dismiss
from howl.submission import TaskRequest, submit
from tests.helpers.support import PATIENCE, Process, eventually

HOST = socket.gethostname()
ALPHA, BETA, PLAIN = f"alpha@{HOST}", f"beta@{HOST}", "github-worker-1"


@pytest.mark.parametrize(
    ("node_name", "worker_id"),
    [
        ("celery@github-worker-1", "github-worker-1"),
        ("celery@host.example.org", "host.example.org"),
        ("alpha@host", "alpha@host"),
        ("celery1@host", "celery1@host"),
        ("celery@alpha@host", "celery@alpha@host"),
        ("celery@", "celery@"),
    ],
)
def test_a_node_has_an_id_of_its_own_that_leads_back_to_it(node_name: str, worker_id: str) -> None:
    assert worker_id_of(node_name) == worker_id
    assert node_name_of(worker_id) == node_name


@pytest.fixture
def nodes(start: Callable[..., Process], server: Process, worker_env: dict[str, str], worker_row: Any) -> Any:
    """Three workers of one host, by their ids."""
    options = ("-P", "threads", "-c", "1", "-l", "INFO", "-n")
    made = {
        worker_id: start("-A", "howl", "worker", *options, name, env=worker_env, program="celery")
        for worker_id, name in ((ALPHA, "alpha@%h"), (BETA, "beta@%h"), (PLAIN, PLAIN))
    }
    for worker_id in made:
        eventually(lambda one=worker_id: worker_row(one))
    return made


def test_nodes_of_one_host_are_workers_of_their_own_and_each_is_a_destination(
    nodes: dict[str, Process], app: Celery, session: Session, task_row: Any, worker_row: Any
) -> None:
    for worker_id in nodes:
        task_id = submit(TaskRequest(name="tests.add", args=[1, 2], worker_id=worker_id), session, app)
        result = app.AsyncResult(task_id)
        assert result.get(timeout=PATIENCE) == 3
        assert task_row(task_id).worker_id == worker_id
        assert result.worker == node_name_of(worker_id)
        for name in (result.worker, worker_id):
            assert app.control.ping([name], timeout=PATIENCE) == [{result.worker: {"ok": "pong"}}]
    (told,) = dismiss([ALPHA], "drain", session, app, timeout=PATIENCE)
    assert told["answered"]
    assert nodes[ALPHA].wait() == 0
    eventually(lambda: worker_row(ALPHA).status == "offline")
    assert worker_row(BETA).status == "active"
    assert nodes[BETA].popen.poll() is None
