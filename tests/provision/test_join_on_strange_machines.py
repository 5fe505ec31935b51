"""A join string where strangers have their say: in a repository's `.env`, and in commands of the worker's own user."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from howl.join import decode
from tests.helpers.person import Person
from tests.helpers.servers import Listener, Server, ready
from tests.helpers.support import Process, as_an_ordinary_user, eventually

THIEF = Path(__file__).parents[1] / "helpers" / "thief.py"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Run one of our programs behind another, in a folder that a stranger filled."""
    running: list[Process] = []

    def begin(program: str, *words: str, env: dict[str, str], behind: list[str]) -> Process:
        line = [*behind, str(Path(sys.executable).with_name(program)), *words]
        running.append(Process(line, env, tmp_path / "log"))
        return running[-1]

    yield begin
    for process in running:
        process.end()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_command_finds_no_join_string_in_any_process_of_its_worker(
    server: Server, howl_server: Process, run: Callable[..., Process], person: Person, tmp_path: Path
):
    env = server.worker_env(HOWL_WORKER_ORIGIN="local", HOME=str(tmp_path))
    worker = ready(
        run("howl", "worker", "--name", "worker", "--concurrency", "2", env=env, behind=as_an_ordinary_user())
    )
    secrets = [env["HOWL_JOIN"], decode(env["HOWL_JOIN"]).password]
    argv = [sys.executable, str(THIEF), "0" if os.geteuid() == 0 else str(worker.pid)]
    task_id = person.submit("command.run", argv, None, None, "\n".join(secret[::-1] for secret in secrets))
    eventually(lambda: person.status(task_id) in ("succeeded", "failed"))
    assert re.fullmatch(r"read [1-9]\d*\n", person.result(task_id)["stdout"])


@pytest.mark.parametrize(
    "line", [("howl", "worker"), ("howl", "doctor", "--as", "worker"), ("celery", "-A", "howl", "worker")], ids=" ".join
)
@pytest.mark.parametrize("which", ["REDIS", "NATS"])
def test_a_password_is_not_sent_where_a_repository_s_env_says(
    server: Server, run: Callable[..., Process], tmp_path: Path, line: tuple[str, ...], which: str
):
    heard = bytearray()
    with Listener(b"", heard) as port:
        (tmp_path / ".env").write_text(f"HOWL_TLS=0\n{which}_HOST=localhost\n{which}_PORT={port}\n")
        # Named, as it is by who trusts the folder: one that is only found says nothing about servers beside a join.
        env = server.worker_env(PYTHONWARNINGS="ignore") | {"HOWL_ENV_FILE": ".env"}
        process = run(*line, env=env, behind=["env", f"--chdir={tmp_path}"])
        assert process.wait() == 1, process.output
    assert not heard
    (said,) = process.output.strip().splitlines()
    assert "HOWL_JOIN alone says where Redis and NATS are" in said
    assert f"unset HOWL_TLS, {which}_HOST, {which}_PORT, in the environment and in .env" in said
