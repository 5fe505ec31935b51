"""Somebody fetches what a stranger's worker left, and works in that folder: none of it runs or is obeyed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from howl.connections import postgres
from howl.models import Artifact
from tests.helpers.crew import CELERY, HOWL, Crew
from tests.helpers.support import PATIENCE, eventually

#: Modules that HOWL, or a library of its, imports only when a command needs them, or tries to.
MODULES = ("helper.py", "httpx.py", "html.py", "brotli.py", "aiohttp.py", "celeryconfig.py", "flowerconfig.py")
FLOWER = ("flower", "--port", "0")


@pytest.fixture(scope="module")
def crew(enlist: Callable[[str], Crew]) -> Crew:
    return enlist("threads")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    return made


@pytest.fixture
def in_folder(crew: Crew, folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in it, as somebody whose settings are in the environment, and who set no HOWL_ENV_FILE."""
    unset = ("HOWL_ENV_FILE", "HOWL_TASK_MODULES", "PYTHONPATH")
    env = {name: value for name, value in crew.env.items() if name not in unset}

    def _run(*line: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, cwd=folder, env=env | changes, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return _run


def leave(crew: Crew, mark: Path) -> str:
    """What the stranger's task leaves; returns its id. Of a `.env` there is only a row from before it was refused."""
    task_id = crew.send("leave_trap", str(mark), [*MODULES, "env"])
    assert crew.ended(task_id).status == "succeeded"
    eventually(lambda: len(rows(crew, task_id)) == len(MODULES) + 1)
    with postgres.session(crew.settings.database()) as opened:
        opened.scalars(select(Artifact).where(Artifact.task_id == task_id, Artifact.name == "env")).one().name = ".env"
        opened.commit()
    return task_id


def rows(crew: Crew, task_id: str) -> list[Artifact]:
    with postgres.session(crew.settings.database()) as opened:
        return list(opened.scalars(select(Artifact).where(Artifact.task_id == task_id)))


def test_files_go_into_a_folder_of_the_tasks_own_and_none_is_called_env(
    crew: Crew, in_folder: Any, folder: Path, tmp_path: Path
) -> None:
    task_id = leave(crew, tmp_path / "mark")
    fetched = in_folder(HOWL, "artifacts", "get", task_id)
    assert fetched.returncode == 0, fetched.stderr
    assert [path.name for path in folder.iterdir()] == ["howl-artifacts"]
    assert {path.name for path in (folder / "howl-artifacts" / task_id).iterdir()} == {*MODULES, "_env"}


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_nothing_that_was_fetched_runs_in_the_folder_it_is_in(
    crew: Crew, in_folder: Any, folder: Path, tmp_path: Path, mode: int
) -> None:
    mark = tmp_path / "mark"
    task_id = leave(crew, mark)
    assert in_folder(HOWL, "artifacts", "get", task_id, "--to", ".").returncode == 0
    # At worst somebody renames it, and closes it to others.
    (folder / "_env").rename(folder / ".env")
    (folder / ".env").chmod(mode)
    done = in_folder(HOWL, "submit", "command.run", "--args", '[["true"]]')
    assert done.returncode == 0, done.stderr
    assert ("HOWL_TASK_MODULES" if mode == 0o600 else "chmod 600") in done.stderr
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize(
    "line",
    [
        (HOWL, "submit", "--list"), (sys.executable, "-P", "-m", "howl.cli", "submit", "--list"), (HOWL, "doctor"),
        (HOWL, "worker", "--name", "visitor", "--idle-exit", "1s", "--pool", "solo"),
        (CELERY, "-A", "howl", "inspect", "ping", "--timeout", "1"),
    ],
)  # fmt: skip
def test_no_command_runs_a_module_of_the_folder(in_folder: Any, folder: Path, tmp_path: Path, line: Any) -> None:
    mark = tmp_path / "mark"
    for name in MODULES:
        (folder / name).write_text(f"open({str(mark)!r}, 'a').write(__name__)\n")
    assert "helper" not in in_folder(*line, HOWL_QUEUES="nobodys").stdout
    assert not mark.exists(), mark.read_text()


def test_flower_runs_nothing_of_the_folder(crew: Crew, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in MODULES:
        (folder / name).write_text(f"open({str(mark)!r}, 'a').write(__name__)\n")
    log = tmp_path / "flower.log"
    env = {name: value for name, value in crew.env.items() if name not in ("HOWL_ENV_FILE", "PYTHONPATH")}
    env |= {"FLOWER_BASIC_AUTH": "howl:only-for-tests", "HOWL_TASK_MODULES": ""}
    with log.open("wb") as output, subprocess.Popen([HOWL, *FLOWER], cwd=folder, env=env, stderr=output,
                                                    stdout=output) as flower:  # fmt: skip
        try:
            eventually(lambda: "Flower is up" in log.read_text() or flower.poll() is not None)
            assert flower.poll() is None, log.read_text()
        finally:
            flower.terminate()
    assert not mark.exists(), mark.read_text()


def test_a_persons_own_task_module_is_found_where_they_say(in_folder: Any, folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from celery import shared_task\n\n@shared_task(name='mine.task')\ndef task():\n    'Mine.'\n"
    )
    unfound = in_folder(HOWL, "submit", "--list", HOWL_TASK_MODULES="mine")
    assert (unfound.returncode, "PYTHONPATH" in unfound.stderr, "Traceback" in unfound.stderr) == (1, True, False)
    found = in_folder(HOWL, "submit", "--list", HOWL_TASK_MODULES="mine", PYTHONPATH=str(folder))
    assert "mine.task" in found.stdout


@pytest.mark.parametrize("which", ["howl-artifacts", "the task's"])
def test_a_link_in_place_of_the_folder_is_not_followed(
    crew: Crew, in_folder: Any, folder: Path, tmp_path: Path, which: str
) -> None:
    task_id = leave(crew, tmp_path / "mark")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if which == "howl-artifacts":
        (folder / which).symlink_to(elsewhere)
    else:
        (folder / "howl-artifacts").mkdir()
        (folder / "howl-artifacts" / task_id).symlink_to(elsewhere)
    refused = in_folder(HOWL, "artifacts", "get", task_id)
    assert (refused.returncode, "--to" in refused.stderr) == (1, True)
    assert [*elsewhere.iterdir()] == []
