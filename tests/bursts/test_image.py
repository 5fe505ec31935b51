"""The worker's image, as far as it can be had without an engine: what it would run, with what it is told."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery

from howl.config import Settings
from tests import tasks
from tests.helpers.support import Process, eventually

ROOT = Path(__file__).parents[2]
WORKER = (ROOT / "workers" / "Dockerfile").read_text().partition("AS worker\n")[2].replace("\\\n", " ")


def stated(instruction: str) -> str:
    """What the worker's stage says last of it."""
    return re.findall(rf"(?m)^{instruction}\s+(.+)$", WORKER)[-1]


@pytest.fixture
def told(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """Hosts, ports and passwords, in a namespace of the test's; nothing else but what the image itself sets."""
    redis, nats = urlsplit(settings.redis()), urlsplit(settings.nats())
    names = dict(pair.split("=") for pair in stated("ENV").split())
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HOWL_PULSE_FILE": str(tmp_path / Path(names["HOWL_PULSE_FILE"]).name),
        "HOWL_ENV_FILE": names["HOWL_ENV_FILE"].strip('"'),
        "MANAGER_HOST": str(redis.hostname),
        "REDIS_HOST": str(redis.hostname),
        "REDIS_PORT": str(redis.port),
        "REDIS_PASSWORD": str(redis.password),
        "NATS_HOST": str(nats.hostname),
        "NATS_PORT": str(nats.port),
        "NATS_USER": str(nats.username),
        "NATS_PASSWORD": str(nats.password),
        "HOWL_KEY_PREFIX": settings.key_prefix,
        "HOWL_SUBJECT_PREFIX": settings.subject_prefix,
        "HOWL_TASK_MODULES": "tests.tasks",
        "PYTHONPATH": str(ROOT),
    }


def test_what_the_image_runs_works_with_hosts_and_passwords_alone(
    told: dict[str, str],
    server: Process,
    app: Celery,
    task_row: Callable[[str], Any],
    worker_row: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    container = Process([*json.loads(stated("ENTRYPOINT")), "--name", "far"], told, tmp_path / "container.log")
    try:
        sent = tasks.add.delay(1, 2)
        eventually(lambda: container.popen.poll() is not None or ((row := task_row(sent.id)) and row.finished_at))
        assert container.popen.poll() is None, container.output
        assert task_row(sent.id).worker_id == "far"
        row = eventually(lambda: worker_row("far"))
        assert (row.status, row.manager_host) == ("active", told["MANAGER_HOST"])
        health = json.loads(stated("HEALTHCHECK").partition("CMD")[2])
        assert subprocess.run(health, env=told, timeout=30, check=False).returncode == 0
        container.signal(signal.SIGTERM)  # docker stop
        assert container.wait() == 0, container.output
    finally:
        container.end()


def test_no_env_file_is_read_wherever_the_image_runs(told: dict[str, str]) -> None:
    assert told["HOWL_ENV_FILE"] == ""


def test_the_image_runs_as_nobody_in_particular_and_without_a_shell() -> None:
    assert stated("USER") not in ("root", "0")
    assert json.loads(stated("ENTRYPOINT")) == ["howl", "worker"]
