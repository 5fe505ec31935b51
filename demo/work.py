"""The demo's tasks, on real input, and the evidence that each must return.

A nonce file is made when the demo begins, so nothing prepared beforehand can know its digest. Commands and the agent
stand-in run behind `witness.py`, which prints the file's digest and its own process id before it becomes them. Each
page contains the nonce, so the digest that web.fetch returns depends on it; the task's events name the process that
fetched the page. One page has the nonce's digest as its title, which only a browser that loaded it can return.
"""

import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import agent_stand_in, witness
from howl.errors import DemoFailed
from workers.chromium.pool import NAMES

#: The checkout, whose files are the demo's input.
ROOT = Path(__file__).parents[1]

#: Quick parts of the tests that start no servers, which tests/demo/test_demo.py checks.
SHARDS = (
    "tests/test_durations.py",
    "tests/cli/test_formats.py",
    "tests/embedded/test_binaries.py",
    "tests/embedded/test_isolation.py",
    "tests/workers/test_socks_proxy.py",
    "tests/workers/test_junit.py",
)

LINTER, TESTS, PAGES, PICTURE, AGENT = "linter", "test shards", "web pages", "screenshot", "agent stand-in"


@dataclass(frozen=True)
class Work:
    """A task to submit: its kind, the MCP tool and its arguments, the digest that its result must contain."""

    kind: str
    title: str
    tool: str
    arguments: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Evidence:
    """The evidence in a task's result: a digest, the processes that ran it, whether it did `well`, a line to show."""

    digest: str
    pids: frozenset[int]
    well: bool
    said: str


def require_checkout() -> None:
    """Raise DemoFailed unless the repository's own files exist."""
    if not all((ROOT / part).exists() for part in ("pyproject.toml", *SHARDS)):
        raise DemoFailed("The demo works on HOWL's own repository: run `make demo` in a checkout of it.")


def agent_command(nonce: Path) -> str:
    """Return HOWL_AGENT_COMMAND for the stand-in."""
    return shlex.join([*_witness(nonce), sys.executable, "-I", agent_stand_in.__file__, str(ROOT), "{prompt}"])


def has_browser() -> bool:
    """Return whether workers on this machine can open pages in a browser."""
    return importlib.util.find_spec("playwright") is not None and any(map(shutil.which, NAMES))


def planned(nonce: Path, digest: str, pages: dict[str, str], front: str, workers: list[str]) -> list[Work]:
    """Return all tasks, one of them assigned to each worker by name.

    `pages` are digests by URL, `front` is the page for the browser.
    """
    commands = [*_testing(nonce.parent), *_linting()]
    folders = [folder for folder in _packages() if "/" in folder]
    return [
        *_assigned(folders, digest, workers),
        *(_command(kind, title, [*_witness(nonce), *argv], digest) for kind, title, argv in commands),
        *(_fetch(url, page_digest) for url, page_digest in pages.items()),
        *([_look(front, digest)] if has_browser() else []),
    ]


def evidence(kind: str, task: dict[str, Any]) -> Evidence:
    """Return the evidence in get_task's answer on a task that succeeded; raises DemoFailed if there is none."""
    try:
        ran = frozenset(event["data"]["pid"] for event in task["events"] if "pid" in event["data"])
        result = task["result"]
        if kind == PAGES:
            said = f"{result['title']}: status {result['status']}, {result['size']:,} bytes"
            return Evidence(result["sha256"], ran, result["status"] == 200, said)
        if kind == PICTURE:
            said = f"{result['width']} x {result['height']} pixels, {result['artifact']['size']:,} bytes"
            return Evidence(result["title"], ran, result["status"] == 200, said)
        testimony, *output = result["stdout"].splitlines()
        told = json.loads(testimony)
        well = result["exit_status"] == 0 and told["pid"] == result["pid"]
        return Evidence(told["nonce_sha256"], ran | {told["pid"]}, well, (output or [""])[-1])
    except (KeyError, TypeError, ValueError) as error:
        raise DemoFailed(f"Task {task.get('task_id')} returned no evidence ({error!r}): {task.get('result')}") from None


def _witness(nonce: Path) -> list[str]:
    return [sys.executable, "-I", witness.__file__, str(nonce)]


def _packages() -> list[str]:
    """Return the packages at the top, and those just below: enough work for two workers, done within two minutes."""
    files = (file for top in ("howl", "workers", "alembic") for file in (ROOT / top).rglob("*.py"))
    return sorted({str(Path(*file.parent.relative_to(ROOT).parts[:2])) for file in files} | {"tests"})


def _linting() -> Iterator[tuple[str, str, list[str]]]:
    """Yield commands for the linter, without a cache, which would be left behind."""
    ruff = str(Path(sys.executable).with_name("ruff"))
    for folder in _packages():
        yield LINTER, f"ruff check {folder}", [ruff, "check", "--no-cache", folder]


def _testing(home: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield commands for the tests; each run makes a folder of its own, because another worker may begin it again."""
    for number, shard in enumerate(SHARDS):
        place = home / f"shard-{number}"
        place.mkdir(exist_ok=True)
        line = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", shard]
        yield TESTS, f"pytest {shard}", ["env", f"TMPDIR={place}", *line]


def _command(kind: str, title: str, argv: list[str], digest: str) -> Work:
    call = {"argv": argv, "cwd": str(ROOT), "timeout": 120}
    return Work(kind, title, "submit_task", {"name": "command.run", "arguments": call, "description": title}, digest)


def _fetch(url: str, digest: str) -> Work:
    return Work(PAGES, url, "submit_task", {"name": "web.fetch", "arguments": {"url": url}}, digest)


def _look(url: str, digest: str) -> Work:
    call = {"name": "browser.screenshot", "arguments": {"url": url}}
    return Work(PICTURE, url, "submit_task", call, digest)


def _assigned(folders: list[str], digest: str, workers: list[str]) -> Iterator[Work]:
    for number, folder in enumerate(folders):
        prompt = f"Count the lines of the Python files in {folder}."
        to = {"worker_id": workers[number]} if number < len(workers) else {}
        yield Work(AGENT, prompt, "assign_task", {"description": prompt, **to}, digest)
