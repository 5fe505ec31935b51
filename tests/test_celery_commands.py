"""Celery remains Celery: its own commands, Flower, and plain clients of stock Celery."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from celery import Celery

from tests.helpers.support import PATIENCE, eventually, run_program

CELERY = str(Path(sys.executable).with_name("celery"))


@pytest.fixture
def celery(env):
    """Run `celery -A howl …` to its end."""

    def _celery(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return run_program([CELERY, "-A", "howl", *arguments], env | changes)

    return _celery


def test_worker_ping_status_inspect_and_call_work(start, worker_env, server, celery, task_row, worker_row):
    worker = start("-A", "howl", "worker", "-n", "plain", "-c", "1", env=worker_env, program="celery")
    eventually(lambda: worker_row("plain") or worker.popen.poll() is not None)
    assert worker.popen.poll() is None, worker.output
    # Unless told whom and how long to wait for, these commands listen for one second.
    patiently = ("--destination", "celery@plain", "--timeout", str(PATIENCE))
    assert "celery@plain: OK" in celery("inspect", *patiently, "ping").stdout
    assert "1 node online" in celery("status", *patiently).stdout
    assert "tests.add" in celery("inspect", *patiently, "registered").stdout
    assert json.loads(celery("inspect", *patiently, "stats", "--json").stdout)["celery@plain"]["pid"] == worker.pid
    task_id = celery("call", "tests.add", "--args", "[20, 22]").stdout.strip()
    assert eventually(lambda: (row := task_row(task_id)) and row.result) == 42
    assert celery("result", task_id).stdout.strip() == "42"
    assert "ok" in celery("control", "shutdown").stdout.lower() or worker.wait() == 0
    assert worker.wait() == 0


def test_report_shows_the_configuration_without_the_password(celery, settings):
    report = celery("report").stdout
    assert "redis://" in report
    assert settings.redis().split(":")[2].split("@")[0] not in report


def test_purge_empties_the_queue(celery, app):
    app.send_task("tests.add", (1, 1))
    assert "Purged 1 message" in celery("purge", "-f").stdout


def test_a_plain_celery_client_enqueues_and_a_plain_task_runs_unchanged(server, start_worker, settings, task_row):
    start_worker("w1")
    stock = Celery("somebody", broker=settings.redis(), set_as_current=False)
    stock.conf.broker_transport_options = {"global_keyprefix": settings.key_prefix}
    task_id = stock.send_task("tests.add", (40, 2)).id
    assert eventually(lambda: (row := task_row(task_id)) and row.result) == 42
    stock.close()


def test_eta_tasks_wait_and_rate_limits_hold(server, start_worker, app, task_row):
    start_worker("w1")
    sent = app.send_task("tests.add", (1, 1), countdown=1)
    row = eventually(lambda: (row := task_row(sent.id)) and row.finished_at and row)
    assert row.result == 2
    assert app.control.rate_limit("tests.noop", "10/s", reply=True, timeout=PATIENCE, limit=1)


def test_an_unregistered_task_fails_and_says_so(server, start_worker, app, task_row):
    start_worker("w1")
    sent = app.send_task("tests.nobody_knows")
    row = eventually(lambda: (row := task_row(sent.id)) and row.finished_at and row)
    assert (row.status, row.error_type) == ("failed", "celery.exceptions.NotRegistered")


def test_messages_other_than_json_are_not_accepted(start_worker, app):
    worker = start_worker("w1")
    app.send_task("tests.add", (1, 1), serializer="pickle")
    eventually(lambda: "Refusing to deserialize" in worker.output)
    assert worker.popen.poll() is None


def test_flower_shows_workers_and_results(start, server, start_worker, env, app, settings):
    start_worker("w1")
    port = _free_port()
    flower = start("-A", "howl", "flower", f"--port={port}", "--address=127.0.0.1",
                   env=env | {"FLOWER_BASIC_AUTH": "me:secret"}, program="celery")  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("me", "secret"), trust_env=False) as browser:
        eventually(lambda: flower.popen.poll() is not None or _answers(browser))
        assert "celery@w1" in eventually(lambda: _workers(browser))
        queues = browser.get("/api/queues/length").json()["active_queues"]
        assert {"name": "celery", "messages": 0} in queues
        result = app.send_task("tests.add", (1, 2))
        result.get(timeout=PATIENCE)
        assert browser.get(f"/api/task/result/{result.id}").json()["result"] == 3


def _answers(browser: httpx.Client) -> bool:
    try:
        return browser.get("/").status_code == 200
    except httpx.TransportError:
        return False


def _workers(browser: httpx.Client) -> dict:
    return browser.get("/api/workers?refresh=1").json()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


NOBODY = {"HOWL_REDIS_URL": "redis://127.0.0.1:1/0", "HOWL_NATS_URL": "", "HOWL_DATABASE_URL": ""}


@pytest.mark.parametrize("arguments", [("worker", "--name", "w1"), ("server",)], ids=" ".join)
@pytest.mark.alone
def test_redis_away_at_start_is_said_within_ten_seconds(arguments, start, env):
    process = start(*arguments, env=env | NOBODY | {"HOWL_DATABASE_URL": env["HOWL_DATABASE_URL"]})
    assert process.wait(timeout=10) == 1
    assert "cannot be used" in process.output
    assert "Traceback" not in process.output


def test_with_nothing_configured_commands_say_what_to_set(celery, tmp_path):
    answer = celery("status", HOWL_REDIS_URL="", HOWL_NATS_URL="", HOWL_DATABASE_URL="", HOWL_HOME=str(tmp_path))
    assert answer.returncode == 1
    assert re.search(r"set HOWL_REDIS_URL .*howl up", answer.stderr)
    assert "Traceback" not in answer.stderr


def test_a_worker_leaves_at_its_deadline_after_finishing_what_runs(
    server, start_worker, app, task_row, worker_row, tmp_path
):
    worker = start_worker("w1", "--concurrency", "1", "--runtime", "20s", "--grace", "10s")
    running = app.send_task("tests.report", (str(tmp_path / "end"),))
    waiting = [app.send_task("tests.noop") for _ in range(3)]
    eventually(lambda: (row := task_row(running.id)) and row.status == "started")
    eventually(lambda: "taking no more tasks" in worker.output)
    (tmp_path / "end").touch()
    assert worker.wait() == 0
    assert eventually(lambda: (row := task_row(running.id)) and row.finished_at and row).status == "succeeded"
    eventually(lambda: worker_row("w1").status == "offline")
    assert [task_row(sent.id) for sent in waiting] == [None, None, None]
    start_worker("w2", "--concurrency", "4")
    eventually(lambda: all((row := task_row(sent.id)) and row.status == "succeeded" for sent in waiting))


def test_the_server_process_stays_under_200_megabytes(server, start_worker, app):
    start_worker("w1")
    results = [app.send_task("tests.echo", ("x" * 10_000,)) for _ in range(300)]
    for result in results:
        result.get(timeout=PATIENCE)
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 200 * 1024
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
