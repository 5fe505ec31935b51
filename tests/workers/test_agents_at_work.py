"""agent.run in a real worker: files reach the server, and ill-behaved agents leave the worker well and small."""

import asyncio
import contextlib
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from sqlalchemy import select

from howl.artifacts import store as objects
from howl.connections import postgres
from howl.embedded.stack import Stack
from howl.models import Artifact, Task
from tests.helpers.crew import Crew
from tests.helpers.git_server import commit
from tests.helpers.support import eventually, optional_program
from tests.workers.conftest import Tree
from workers.checkout import workfolder

pytestmark = pytest.mark.servers

#: What a worker's process may hold, bytes: its modules are 75 MB of it.
MEMORY = 130 << 20

#: Threads can be interrupted neither by Celery's time limits nor by a cancel.
INTERRUPTED = pytest.mark.parametrize("crew", ["prefork"], indirect=True)

#: The prompt is a Python program.
AGENT = shlex.join([sys.executable, "-c"]) + " {prompt}"


class AgentCrew(Crew):
    """Its worker has an agent that does what a prompt says, to the letter."""

    def __init__(self, stack: Stack, name: str, pool: str, folder: Path) -> None:
        super().__init__(stack, name, pool, folder)
        self.work = folder / "work"
        self.work.mkdir()

    def hire(self, name: str, *options: str) -> Any:
        self.env |= {
            "HOWL_AGENT_COMMAND": AGENT, "HOWL_WORK_FOLDER": str(self.work), "HOWL_WORKER_ORIGIN": "local",
            "HOWL_CHECKOUT_SCHEMES": "https,file",
        }  # fmt: skip
        return super().hire(name, *options)

    def ask(self, program: str, **options: Any) -> str:
        limits = {name: options.pop(name) for name in ("time_limit", "soft_time_limit") if name in options}
        return str(self.app.tasks["agent.run"].apply_async([program], options, **limits).id)

    def done(self, program: str, **options: Any) -> Task:
        return self.ended(self.ask(program, **options))

    def kept(self, task_id: str) -> dict[str, bytes]:
        """The task's files when the server has seen all of them."""
        query = select(Artifact).where(Artifact.task_id == task_id)

        def look() -> list[Artifact]:
            with postgres.session(self.settings.database()) as opened:
                found = list(opened.scalars(query))
            return found if all(row.status == "kept" for row in found) else []

        return asyncio.run(self._contents({row.name: row.artifact_id for row in eventually(look)}))

    async def _contents(self, ids: dict[str, str]) -> dict[str, bytes]:
        client = await nats.connect(self.settings.nats(), connect_timeout=5)
        try:
            store = await client.jetstream().object_store(objects.bucket(self.name))
            return {name: (await store.get(artifact_id)).data or b"" for name, artifact_id in ids.items()}
        finally:
            await client.close()

    def peaks(self) -> list[int]:
        """The most bytes of memory that the worker and its children held until now."""
        family = [self.worker.pid, *children(self.worker.pid)]
        return [int(re.findall(r"VmHWM:\s+(\d+) kB", status(pid))[0]) << 10 for pid in family]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module", params=["prefork", "threads"])
def crew(request: pytest.FixtureRequest, stack: Stack) -> Iterator[AgentCrew]:
    folder = Path(tempfile.mkdtemp(prefix="agents-", dir=stack.home))
    made = AgentCrew(stack, f"agents_{request.param}", request.param, folder)
    try:
        made.start()
        yield made
    finally:
        made.end()


def test_files_and_the_diff_reach_the_server(crew: AgentCrew, tmp_path: Path) -> None:
    optional_program("git")
    commit(tmp_path / "project", {"README": b"one\n"})
    program = """
import os, pathlib
pathlib.Path("README").write_text("two\\n")
pathlib.Path("artifacts/shots").mkdir()
pathlib.Path("artifacts/shots/a.bin").write_bytes(bytes(3_000_000))
pathlib.Path("artifacts/../artifacts/notes.txt").write_text("done")
os.mkfifo("artifacts/pipe")
with open("artifacts/huge", "wb") as file: file.truncate(500 << 20)
os.symlink("/etc/passwd", "artifacts/users")
with open(b"artifacts/\\xff", "wb"): pass
"""
    row = crew.done(program, repository=f"file://{tmp_path}/project")
    kept = crew.kept(row.task_id)
    assert set(kept) == {"changes.diff", "shots-a.bin", "notes.txt"}
    assert b"-one\n+two\n" in kept["changes.diff"]
    assert kept["shots-a.bin"] == bytes(3_000_000)
    assert {each["name"]: each["media_type"] for each in row.result["artifacts"]}["changes.diff"] == "text/x-diff"
    refused = {each["name"]: each["why"] for each in row.result["refused"]}
    assert set(refused) == {"pipe", "huge", "users", "\ufffd"}
    assert "HOWL_ARTIFACT_LIMIT" in refused["huge"]
    assert row.result["changes"]["files"] == [{"path": "README", "change": "modified"}]
    assert list(crew.work.iterdir()) == []


def test_what_a_failing_agent_left_reaches_the_server(crew: AgentCrew) -> None:
    row = crew.done("import sys; open('artifacts/half.txt', 'w').write('half'); sys.exit('no idea')")
    assert (row.error_type, "no idea" in str(row.error_message)) == ("howl.errors.AgentFailed", True)
    assert crew.kept(row.task_id) == {"half.txt": b"half"}


def test_an_agent_that_prints_a_gigabyte_costs_the_worker_no_memory(crew: AgentCrew) -> None:
    row = crew.done("import os\nfor _ in range(16_384): os.write(1, b'y' * 65_535 + b'\\n')")
    assert row.status == "succeeded"
    assert row.result["stdout_truncated"]
    assert len(row.result["stdout"]) < 70_000
    assert max(crew.peaks()) < MEMORY


def test_an_agent_that_prints_a_gigabyte_without_a_line_end_costs_the_worker_no_memory(crew: AgentCrew) -> None:
    row = crew.done("import os\nfor _ in range(16_384): os.write(2, b'\\xff' * 65_536)")
    assert (row.status, "\ufffd" in row.result["stderr"]) == ("succeeded", True)
    assert max(crew.peaks()) < MEMORY


def test_what_is_no_utf_8_is_told_with_replacement_characters(crew: AgentCrew) -> None:
    row = crew.done("import os; os.write(1, b'a\\xff\\xfe\\x00\\xed\\xa0\\x80b')")
    assert row.status == "succeeded"
    assert re.fullmatch("a[^a-z]+b", row.result["stdout"])


@pytest.mark.parametrize("leave", ["leave", "stay"])
def test_a_daemon_that_ignores_sigterm_ends_with_its_agent(crew: AgentCrew, tmp_path: Path, leave: str) -> None:
    tree = Tree(tmp_path / "pids")
    program = f"import os; os.execv({sys.executable!r}, {tree.argv(leave)!r})"
    row = crew.done(program, timeout=6)
    assert row.status == ("succeeded" if leave == "leave" else "failed")
    assert "three processes are running" in (row.result["stdout"] if row.result else str(row.error_message))
    assert tree.is_gone()
    assert list(crew.work.iterdir()) == []


@pytest.mark.parametrize("pause", [0, 0.05])
def test_an_agent_that_forks_without_end_ends_in_time(crew: AgentCrew, tmp_path: Path, pause: float) -> None:
    notes = tmp_path / "generations"
    program = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 40
while time.monotonic() < end:
    time.sleep({pause})
    if os.fork():
        time.sleep(0.05)
        os._exit(0)
    os.setsid()
    with open({str(notes)!r}, "a") as file: file.write(".")
"""
    start = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {program!r}]); time.sleep(60)"
    assert crew.done(start, timeout=2).error_type == "howl.errors.CommandTimedOut"
    generations = notes.stat().st_size
    time.sleep(0.5)  # ten generations of the slower
    assert (notes.stat().st_size, generations > 5) == (generations, True)


@INTERRUPTED
def test_a_cancelled_agent_ends_with_its_tree_and_its_folder(crew: AgentCrew, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "pids")
    task_id = crew.ask(f"import os; os.execv({sys.executable!r}, {tree.argv()!r})")
    eventually(tree.is_complete)
    crew.app.control.revoke(task_id, terminate=True)
    eventually(tree.is_gone)
    assert crew.ended(task_id).status == "cancelled"
    eventually(lambda: not list(crew.work.iterdir()))


@INTERRUPTED
def test_a_hard_time_limit_ends_an_agent_with_its_tree(crew: AgentCrew, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "pids")
    row = crew.done(f"import os; os.execv({sys.executable!r}, {tree.argv()!r})", time_limit=6)
    assert row.status == "failed"
    eventually(tree.is_gone)
    for folder in crew.work.iterdir():  # its process was killed, perhaps before it could delete it
        os.utime(folder, (0, 0))
    assert crew.done("print('well')").result["stdout"] == "well\n"
    assert list(crew.work.iterdir()) == []


def test_a_killed_worker_takes_its_agent_along(crew: AgentCrew, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "pids")
    crew.ask(f"import os; os.execv({sys.executable!r}, {tree.argv()!r})", timeout=20)
    eventually(tree.is_complete)
    with contextlib.suppress(ProcessLookupError):
        os.kill(crew.worker.pid, 9)
    crew.worker.wait()
    eventually(tree.is_gone)
    assert [path.name.startswith(workfolder.PREFIX) for path in crew.work.iterdir()] == [True]
