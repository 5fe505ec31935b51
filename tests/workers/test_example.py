"""workers/example.py is what docs/tasks.md says it is, and does what is said of it there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from howl.models import Task
from howl.submission import TaskRequest, submit
from tests.helpers.support import Process, eventually
from workers import TASK_MODULES, example
from workers.example import count_words

TOLD = (Path(__file__).parent.parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TOLD, re.DOTALL)


def test_the_document_shows_the_file_as_it_is():
    assert Path(example.__file__).read_text(encoding="utf-8") in BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_what_the_document_shows_is_python(block: str):
    compile(block, "docs/tasks.md", "exec")


def test_the_tests_that_the_document_shows_pass(tmp_path: Path):
    shown = next(block for block in BLOCKS if "def test_" in block)
    names: dict[str, Callable[[Path], None]] = {}
    exec(compile(shown, "docs/tasks.md", "exec"), names)  # noqa: S102 - this repository's own document
    tests = [test for name, test in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test(tmp_path)


def test_every_module_of_tasks_that_the_document_names_is_listed():
    (listed,) = re.findall(r"TASK_MODULES: .*?= \((.*?)\)", TOLD)
    assert set(TASK_MODULES) <= set(re.findall(r'"(workers\.\w+)"', listed))


@pytest.fixture
def worker_env(worker_env: dict[str, str]) -> dict[str, str]:
    return worker_env | {"HOWL_TASK_MODULES": "workers.example"}


@pytest.fixture
def app(app: Celery) -> Celery:
    app.loader.import_task_module("workers.example")
    return app


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_tries_again_until_the_file_is_there(
    pool: str, server: Process, start_worker: Callable[..., Process], session: Session, app: Celery,
    task_row: Callable[[str], Task], tmp_path: Path,
):  # fmt: skip
    start_worker("w1", "--pool", pool)
    late = tmp_path / "late.txt"
    task_id = submit(TaskRequest(name="example.count_words", args=[str(late)]), session, app)
    eventually(lambda: task_row(task_id).status == "retrying")
    whole = tmp_path / "whole.txt"
    whole.write_text("one two\nthree\n")
    whole.rename(late)  # or it might be read while it is empty
    row = eventually(lambda: (row := task_row(task_id)).finished_at and row)
    assert (row.status, row.result) == ("succeeded", {"lines": 2, "words": 3})
    assert row.attempts > 1


def test_what_is_declared_of_the_example_is_what_celery_goes_by():
    assert (count_words.max_retries, count_words.soft_time_limit, count_words.time_limit) == (8, 100, 120)
