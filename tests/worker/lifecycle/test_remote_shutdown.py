"""`howl workers drain` and `stop`: what a worker that is told to leave did not finish is done elsewhere."""

import json
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from howl.embedded.server import free_port
from tests import tasks
from tests.helpers.support import PATIENCE, eventually, run_program

HOWL = str(Path(sys.executable).with_name("howl"))


@pytest.fixture
def howl(env):
    """Run `howl …` to its end."""
    return lambda *line: run_program([HOWL, *line], env, timeout=PATIENCE)


@pytest.fixture
def held(settings):
    """What owners hold."""
    with redis.Redis.from_url(settings.redis()) as client:
        yield lambda: sum(client.hlen(key) for key in client.keys(f"{settings.key_prefix}claims:*"))


@pytest.fixture
def house(server, start_worker, worker_row, app):
    """Start a worker, and return it when the server knows of it."""

    def _house(name, pool, env=None):
        process = start_worker(name, "--pool", pool, "--concurrency", "1" if pool == "solo" else "2", env=env)
        eventually(lambda: (row := worker_row(name)) and row.status == "active")
        return process

    return _house


@pytest.fixture
def far(start, env, stack):
    """The address of a Redis whose answers take so long."""

    def _far(milliseconds):
        url, port = urlsplit(stack.urls.redis_url), free_port()
        road = start("-m", "benchmarks.proxy", str(port), str(url.port), str(milliseconds), env=env, program="python")
        eventually(lambda: "ready" in road.output)
        return url._replace(netloc=url.netloc.replace(f":{url.port}", f":{port}")).geturl()

    return _far


@pytest.fixture
def gated(tmp_path):
    """Send tasks that wait for the gate; how many times each has begun."""
    diary, gate = tmp_path / "diary", tmp_path / "gate"

    diary.touch()

    def began():
        return [line.split()[1] for line in diary.read_text().splitlines() if line.startswith("began")]

    return lambda number: [tasks.gated.delay(str(diary), str(gate)).id for _ in range(number)], gate, began


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_drained_worker_ends_what_runs_and_gives_back_what_does_not(
    pool, house, gated, howl, task_row, worker_row, held
):
    send, gate, began = gated
    first = house("w1", pool)
    sent = send(5)
    eventually(lambda: len(began()) == 2)
    answer = howl("workers", "drain", "w1")
    assert (answer.returncode, answer.stdout) == (
        0, "w1 takes no more tasks, and leaves when what runs there has ended: 2 tasks.\n",
    )  # fmt: skip
    eventually(lambda: worker_row("w1").status == "draining")
    eventually(lambda: held() <= 4)  # two claims, and a note of each one's beginning
    gate.touch()
    assert first.wait() == 0
    eventually(lambda: worker_row("w1").status == "offline")
    assert held() == 0
    house("w2", pool)
    eventually(lambda: all((row := task_row(task_id)) and row.status == "succeeded" for task_id in sent))
    assert sorted(began()) == sorted(sent)
    assert {task_row(task_id).worker_id for task_id in began()[:2]} == {"w1"}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stopped_worker_gives_back_what_runs_at_once(pool, house, gated, howl, task_row, worker_row, held):
    send, gate, began = gated
    first = house("w1", pool)
    sent = send(3)
    eventually(lambda: len(began()) == 2)
    answer = howl("workers", "stop", "w1", "--wait", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [
        {"worker_id": "w1", "status": "active", "answered": True, "running": 2, "gone": True}
    ]
    assert first.wait() == 0
    assert (worker_row("w1").status, held()) == ("offline", 0)
    gate.touch()
    house("w2", pool)
    eventually(lambda: all((row := task_row(task_id)) and row.status == "succeeded" for task_id in sent))
    assert {task_row(task_id).worker_id for task_id in sent} == {"w2"}


def test_a_stopped_worker_answers_from_wherever_it_is(house, far, howl, worker_row):
    first = house("w1", "threads", env={"HOWL_REDIS_URL": far(milliseconds=120)})
    answer = howl("workers", "stop", "w1", "--wait")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert first.wait() == 0
    assert worker_row("w1").status == "offline"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_drains_already_still_hears(pool, house, gated, howl, task_row, held):
    send, gate, began = gated
    first = house("w1", pool)
    (task_id,) = send(1)
    eventually(began)
    assert howl("workers", "drain", "w1").returncode == 0
    again = eventually(lambda: (told := howl("workers", "drain", "w1")).returncode == 0 and told)
    assert "leaves when what runs there has ended: 1 task." in again.stdout
    stopped = howl("workers", "stop", "w1", "--wait")
    assert (stopped.returncode, "puts back what runs there: 1 task." in stopped.stdout) == (0, True)
    assert first.wait() == 0
    assert held() == 0
    gate.touch()
    house("w2", pool)
    eventually(lambda: (row := task_row(task_id)) and row.status == "succeeded")
    assert task_row(task_id).worker_id == "w2"


def test_a_solo_worker_that_is_busy_is_silent_and_the_error_says_why(house, gated, howl, worker_row):
    send, gate, began = gated
    first = house("w1", "solo")
    send(1)
    eventually(began)
    answer = howl("workers", "drain", "w1")
    assert (answer.returncode, answer.stdout) == (1, "w1 did not answer.\n")
    assert "w1 did not answer within 5 s. A worker of the solo pool hears nothing" in answer.stderr
    gate.touch()
    assert first.wait() == 0  # it heard after its task
    eventually(lambda: worker_row("w1").status == "offline")


def test_all_are_drained_after_a_question_and_their_end_is_waited_for(house, howl, worker_row):
    crew = [house("w1", "threads"), house("w2", "threads")]
    unasked = howl("workers", "drain", "--all")
    assert (unasked.returncode, "Drain 2 workers (w1, w2)?" in unasked.stdout) == (1, True)
    assert [process.popen.poll() for process in crew] == [None, None]
    assert howl("workers", "drain", "--all", "--yes", "--wait").returncode == 0
    assert [process.wait() for process in crew] == [0, 0]
    assert {worker_row("w1").status, worker_row("w2").status} == {"offline"}
    again = howl("workers", "drain", "w1")
    assert (again.returncode, again.stdout) == (0, "w1 is offline already.\n")


def test_one_unknown_worker_dismisses_nobody(house, howl):
    process = house("w1", "threads")
    answer = howl("workers", "stop", "w1", "nobody")
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (1, 1, "")
    assert "No worker 'nobody' is recorded, and none was told" in answer.stderr
    assert howl("workers", "stop", "w").returncode == 1  # nor one whose name begins so
    assert process.popen.poll() is None


def test_a_worker_that_is_gone_without_a_word_is_said_to_be_silent(house, howl):
    process = house("w1", "threads")
    os.killpg(process.pid, signal.SIGKILL)
    answer = howl("workers", "stop", "w1", "--json")
    assert (answer.returncode, json.loads(answer.stdout)[0]["answered"]) == (1, False)
    assert "If it is gone, what it held goes back on the queue by itself" in answer.stderr


def test_a_worker_that_drains_ends_a_task_that_is_cancelled(house, gated, howl, task_row):
    send, _, began = gated
    process = house("w1", "prefork")
    (task_id,) = send(1)
    eventually(began)
    assert howl("workers", "drain", "w1").returncode == 0
    assert howl("tasks", "cancel", task_id).returncode == 0
    eventually(lambda: task_row(task_id).status == "cancelled")
    assert process.wait() == 0
