"""The fork server, by which tests start programs faster: what it starts behaves as if it had been executed."""

import signal
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.support import Process, eventually, run_program

SCRIPT = """
import os, random, signal, sys, time
inherited = sorted(name for name in sys.modules if name.partition(".")[0] in ("howl", "workers", "tests"))
print(sys.argv[1:], sorted(os.environ), os.getcwd(), inherited, sys.stdin.read())
print(os.getpid() == os.getsid(0), sorted(os.listdir("/proc/self/fd"))[:4], file=sys.stderr)
if "wait" in sys.argv:
    print("waiting", flush=True)
    time.sleep(60)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "howl"
    file.write_text(textwrap.dedent(SCRIPT))
    return str(file)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_has_its_own_arguments_environment_streams_and_session(script: str) -> None:
    done = run_program([script, "a", "b c"], {"ONLY": "this"}, stdin="given")
    assert done.returncode == 7
    assert done.stdout == f"['a', 'b c'] ['ONLY'] {Path.cwd()} [] given\n"
    # The fourth is that of the folder that it lists.
    assert done.stderr == "True ['0', '1', '2', '3']\n"


def test_each_is_random_in_its_own_way(tmp_path: Path) -> None:
    file = tmp_path / "howl"
    file.write_text("import random, uuid; print(random.random(), uuid.uuid4())")
    assert len({run_program([str(file)], {}).stdout for _ in range(3)}) == 3


def test_signals_and_ends_are_those_of_a_child(script: str, tmp_path: Path) -> None:
    process = Process([script, "wait"], {}, tmp_path / "log", forks=True)
    eventually(lambda: "waiting" in process.output)
    assert process.popen.poll() is None
    process.signal(signal.SIGINT)
    assert process.wait() in (1, -signal.SIGINT)  # as Python ends after a KeyboardInterrupt
    assert "KeyboardInterrupt" in process.output
    other = Process([script, "wait"], {}, tmp_path / "other", forks=True)
    eventually(lambda: "waiting" in other.output)
    other.end()
    assert other.popen.returncode == -signal.SIGKILL


def test_a_module_runs_as_by_python_m(tmp_path: Path) -> None:
    (tmp_path / "some_module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    done = run_program([sys.executable, "-m", "some_module", "x"], {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "__main__ ['x']\n"), done.stderr
