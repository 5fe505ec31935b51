"""What `from howl import …` gives: tasks and clients need nothing else, and pay only for what they ask for."""

import subprocess
import sys

import pytest

import howl
from howl.embedded.isolation import clean_environment
from howl.errors import UnknownTask
from tests.helpers.support import eventually


@pytest.mark.parametrize("name", howl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(howl)
    assert getattr(howl, name) is not None


def test_no_module_hides_a_public_name() -> None:
    hidden = (
        "import howl.cli.submit, howl.run_progress, howl.submission, howl.artifacts.download, howl.worker.task.context"
    )
    said = f"{hidden}; import howl; print([n for n in howl.__all__ if type(getattr(howl, n)).__name__ == 'module'])"
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "[]\n"


@pytest.mark.parametrize(
    ("line", "unwanted"),
    [
        ("import howl", {"celery", "sqlalchemy"}),
        ("from howl import task, progress, log, artifact", {"sqlalchemy", "nats"}),
    ],
)
def test_a_name_loads_no_more_than_it_needs(line: str, unwanted: set[str]) -> None:
    said = f"import sys; {line}; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    assert not unwanted & set(told.stdout.split())


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        howl.nothing  # noqa: B018


@pytest.mark.servers
def test_a_program_submits_a_task_as_the_command_does(server, start_worker, env, task_row, app, monkeypatch):
    start_worker("w1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    said = (
        "from howl import submit\n"
        "first = submit('tests.add', [40, 2], idempotency_key='sum')\n"
        "assert submit('tests.add', [40, 2], idempotency_key='sum') == first\n"
        "print(first)"
    )
    told = subprocess.run(
        [sys.executable, "-c", said], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stderr
    row = eventually(lambda: (found := task_row(told.stdout.strip())) and found.finished_at and found)
    assert row.result == 42


def test_a_task_that_nobody_knows_is_refused_in_one_sentence(env, monkeypatch):
    said = "from howl import submit; submit('tests.ad')"
    told = subprocess.run(
        [sys.executable, "-c", said],
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stderr.splitlines()[-1].startswith(
        f"{UnknownTask.__module__}.{UnknownTask.__qualname__}: No task 'tests.ad'"
    )
