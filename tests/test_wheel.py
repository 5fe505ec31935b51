"""The wheel by itself, in an environment that has nothing of this repository: does it hold all it needs?"""

import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from howl.embedded.isolation import clean_environment
from tests.helpers.support import PATIENCE, Process, eventually, servers_folder

ROOT = Path(__file__).parents[1]
TASKS = """
from howl import log, progress, task

@task(name="mine.double")
def double(number: int) -> int:
    progress(1, 1)
    log(f"doubling {number}")
    return 2 * number
"""

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
    return next(folder.glob("*.whl"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Outside the repository, where the user PostgreSQL runs as can enter."""
    made = servers_folder("howl wheel ")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def python(wheel: Path, folder: Path) -> str:
    """An environment with the wheel, and the packages that it needs from where they are installed already."""
    venv.create(folder / "env", with_pip=False, symlinks=True)
    packages = next((folder / "env").glob("lib/python*/site-packages"))
    # Of a folder that is named in a .pth file, its own .pth files are not read: not that of this repository.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return str(folder / "env" / "bin" / "python")


def test_the_wheel_has_neither_the_demo_nor_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {"howl", "workers"} <= tops
    assert not tops & {"demo", "tests", "benchmarks", ".ci"}


def test_a_task_of_ones_own_runs_on_howl_up(python: str, folder: Path, tmp_path: Path) -> None:
    (folder / "mine.py").write_text(TASKS)
    env = clean_environment(HOWL_HOME=str(folder / "state"), HOWL_TASK_MODULES="mine", PYTHONPATH=str(folder))

    def howl(*line: str) -> subprocess.CompletedProcess[str]:
        argv = [python, "-m", "howl.cli", *line]
        return subprocess.run(
            argv, env=env, cwd=folder, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
        )

    where = [python, "-c", "import howl; print(howl.__file__)"]
    found = subprocess.run(where, env=env, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert found.stdout.startswith(str(folder))
    started: list[Process] = []
    try:
        for line, word in ((["up"], "server is up"), (["worker", "-n", "w1", "-c", "1"], " ready.")):
            process = Process([python, "-m", "howl.cli", *line], env, tmp_path / f"{line[0]}.log")
            started.append(process)
            eventually(lambda process=process, word=word: word in process.output or process.popen.poll() is not None)
            assert process.popen.poll() is None, process.output
        told = howl("submit", "mine.double", "number=21", "--wait")
        assert (told.returncode, told.stdout) == (0, "42\n"), told.stderr
    finally:
        for process in reversed(started):
            process.signal(signal.SIGTERM)  # so that `howl up` ends its servers before their folder goes
            process.wait()
