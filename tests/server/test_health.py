"""The health check of the persistent server's container."""

import signal
import subprocess
import sys

from howl.config import Settings
from howl.server.health import recorder_silence
from tests.helpers.support import Process, eventually


def test_the_check_passes_while_the_server_runs(server: Process, env: dict[str, str]) -> None:
    eventually(lambda: check(env).returncode == 0)


def test_the_check_fails_in_one_line_where_no_server_ever_ran(env: dict[str, str]) -> None:
    answer = check(env)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Nothing is known of the recorder: ")
    assert len(answer.stderr.splitlines()) == 1


def test_a_server_that_hangs_falls_silent(server: Process, env: dict[str, str], settings: Settings) -> None:
    eventually(lambda: check(env).returncode == 0)
    server.signal(signal.SIGSTOP)
    eventually(lambda: recorder_silence(settings) > 4)  # twice as long as a recorder with nothing to do waits


def check(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "howl.server.health"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
