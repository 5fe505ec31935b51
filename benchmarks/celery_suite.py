"""Celery's own integration suite over HOWL: `howl.install` turns its applications into HOWL's, as it does anybody's.

`pip download --no-deps --no-binary :all: celery==5.7.0`, then `python -m benchmarks.celery_suite celery-5.7.0.tar.gz`;
further arguments are pytest's, such as `-k chord`.
"""

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from celery.contrib.testing import app as testing

import howl
from howl.embedded import binaries
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack
from howl.server import migrate

ROOT = Path(__file__).parents[1]
#: Files of the suite about tasks, not about one broker, one backend, or a process that the suite starts itself.
FILES = ("tasks", "canvas", "inspect", "worker")
#: Most seconds for `howl server` to start.
PATIENCE = 60.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("sdist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--limit", default=60, show_default=True, help="Seconds that a test may take.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(sdist: Path, limit: int, options: tuple[str, ...]) -> None:
    """Run the suite that is in a source distribution of Celery's, on servers of its own; ends with pytest's status."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-suite-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        _unpack(sdist, home)
        with Stack(home / "state") as stack, _plain_redis(home) as port:
            migrate.upgrade(stack.urls.database_url)
            env = clean_environment(
                HOWL_REDIS_URL=stack.urls.redis_url, HOWL_NATS_URL=stack.urls.nats_url,
                HOWL_DATABASE_URL=stack.urls.database_url, HOWL_TASK_MODULES="t.integration.tasks",
                REDIS_HOST="127.0.0.1", REDIS_PORT=str(port), HOWL_SUITE_LIMIT=str(limit),
                # As Celery runs it; the broker is for a worker that the suite starts itself.
                WORKER_LOGLEVEL="INFO", TEST_BROKER=f"redis://127.0.0.1:{port}",
                PYTHONPATH=f"{home}:{ROOT}", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            )  # fmt: skip
            with _server(home, env):
                status = _pytest(home, env, options)
    finally:
        shutil.rmtree(home)
    sys.exit(status)


def _unpack(sdist: Path, home: Path) -> None:
    """Unpack the tests alone: next to them lies a `celery` that Python would take for the installed one."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name.startswith("t/"):
                archive.extract(member, home, filter="data")


@contextmanager
def _plain_redis(home: Path) -> Iterator[int]:
    """Run a server without a password, in which the suite's own tasks record what they did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [binaries.valkey_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    with (home / "redis.log").open("wb") as log, subprocess.Popen(line, stdout=log, stderr=log) as server:
        try:
            yield port
        finally:
            server.terminate()


@contextmanager
def _server(home: Path, env: dict[str, str]) -> Iterator[None]:
    path = home / "server.log"
    line = [Path(sys.executable).with_name("howl"), "server"]
    with path.open("wb") as log, subprocess.Popen(line, env=env, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + PATIENCE
            while "server is up" not in path.read_text():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException(f"`howl server` did not begin: {path.read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


def _pytest(home: Path, env: dict[str, str], options: tuple[str, ...]) -> int:
    """Run pytest in a process of its own, because a worker removes its secrets from its process's environment."""
    files = [f"t/integration/test_{name}.py" for name in FILES]
    line = [sys.executable, "-m", "pytest", "-p", "celery.contrib.pytest", "-p", "benchmarks.celery_suite",
            "-o", "python_classes=test_*", "-p", "no:cacheprovider", "-rfE", "--tb=short",
            *files, *options]  # fmt: skip
    return subprocess.run(line, cwd=home, env=env, check=False).returncode


# --- within pytest, to which this module is a plugin ------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:  # noqa: ARG001  # pytest's signature
    """Call `howl.install` on each application that the suite makes."""
    made = testing.TestApp

    def installed(*args: Any, **options: Any) -> Any:
        return howl.install(made(*args, **options))

    testing.TestApp = installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the seconds of a test; Celery's own limit is five minutes."""
    for item in items:
        item.add_marker(pytest.mark.timeout(int(os.environ["HOWL_SUITE_LIMIT"])), append=False)


if __name__ == "__main__":
    main()
