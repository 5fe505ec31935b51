"""However a worker is told to go, what it did not finish is done elsewhere, and nothing is lost or done twice."""

import os
import signal

import pytest
import redis

from tests import tasks
from tests.helpers.support import eventually

#: Who gets the signal: the entry process alone, as GitHub does it, or everybody, as a terminal does.
TARGETS = {"main": os.kill, "group": os.killpg}


@pytest.fixture
def client(settings):
    """A bare client of the stack's Redis."""
    with redis.Redis.from_url(settings.redis()) as opened:
        yield opened


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_what_a_signalled_worker_did_not_finish_is_done_elsewhere(
    number, target, pool, server, start_worker, app, task_row, client, settings, tmp_path
):
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    diary.touch()
    first = start_worker("w1", "--concurrency", "2", "--pool", pool)
    sent = [tasks.gated.delay(str(diary), str(gate)) for _ in range(6)]
    eventually(lambda: diary.read_text().count("began") == 2)
    TARGETS[target](first.pid, number)
    if number != signal.SIGQUIT:  # which waits for no task
        eventually(lambda: "Taking no more tasks" in first.output)
        gate.touch()
    first.wait()
    gate.touch()
    held = [key for key in client.keys(f"{settings.key_prefix}claims:*") if client.hlen(key)]
    assert held == []
    start_worker("w2", "--concurrency", "4")
    eventually(lambda: all((row := task_row(result.id)) and row.finished_at for result in sent))
    assert {task_row(result.id).status for result in sent} == {"succeeded"}
