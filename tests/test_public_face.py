"""What `from howl import …` gives: tasks and clients need nothing else, and pay only for what they ask for."""

import subprocess
import sys
from typing import Any

import pytest

import howl
from tests.helpers.support import eventually

LOADED = "import howl.cli.submit, howl.run_progress, howl.submission, howl.artifacts.download, howl.worker.task.context"
MODULES = "[name for name in howl.__all__ if type(getattr(howl, name)).__name__ == 'module']"
AUTHORS = "from howl import task, progress, log, artifact"


def run(program: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", howl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(howl)
    assert getattr(howl, name) is not None


def test_no_module_hides_a_public_name() -> None:
    assert run(f"import howl; {LOADED}; print({MODULES})").stdout == "[]\n"


@pytest.mark.parametrize(("line", "unwanted"), [("import howl", "celery"), (AUTHORS, "sqlalchemy"), (AUTHORS, "mcp")])
def test_a_name_loads_no_more_than_it_needs(line: str, unwanted: str) -> None:
    loaded = run(f"import sys; {line}; print(*sys.modules)").stdout.split()
    assert "howl" in loaded
    assert unwanted not in loaded


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        howl.nothing  # noqa: B018


@pytest.mark.servers
def test_a_program_submits_a_task_as_the_command_does(
    server: Any, start_worker: Any, env: dict[str, str], task_row: Any
) -> None:
    start_worker("w1")
    twice = "print(*[submit('tests.add', [40, 2], idempotency_key='sum') for _ in range(2)])"
    told = run(f"from howl import submit; {twice}", env)
    first, second = told.stdout.split()
    assert first == second, told.stderr
    row = eventually(lambda: (found := task_row(first)) and found.finished_at and found)
    assert row.result == 42


@pytest.mark.servers
def test_a_task_that_nobody_knows_is_refused_in_one_sentence(env: dict[str, str]) -> None:
    told = run("from howl import submit; submit('tests.ad')", env)
    assert told.stderr.splitlines()[-1].startswith(
        "howl.errors.UnknownTask: No task 'tests.ad' is registered; did you mean"
    )
