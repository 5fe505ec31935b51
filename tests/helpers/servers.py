"""The servers of docker-compose.yml without Docker: its commands and the files it mounts, on real programs."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from howl.cli import main
from howl.embedded import binaries
from howl.embedded.isolation import clean_environment
from howl.embedded.server import free_port
from howl.provision.folder import Folder
from howl.provision.join import join_string
from tests.helpers.support import Process, eventually

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
HOST = "127.0.0.1"


def redis_server() -> str:
    """Debian's, for the embedded one speaks no TLS."""
    found = shutil.which("redis-server")
    if found is None:
        assert "CI" not in os.environ, "redis-server is not installed: apt-get install redis-server"
        pytest.skip("redis-server, which tests of TLS need, is not installed")
    return found


def howl(*arguments: str | Path) -> str:
    """What a command printed; it must end well."""
    answer = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


class Program:
    """A server in the foreground, which ends when told to."""

    def __init__(self, argv: list[str], cwd: Path, port: int, log: Path, env: dict[str, str]) -> None:
        with log.open("wb") as output:
            self.popen = subprocess.Popen(argv, cwd=cwd, env=os.environ | env, stdout=output, stderr=subprocess.STDOUT)
        eventually(lambda: _listens(port) or self.popen.poll() is not None)
        assert self.popen.poll() is None, log.read_text()

    def begin_end(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def end(self) -> None:
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(10)


class Server:
    """What `howl init` made in `out`, at work."""

    def __init__(self, out: Path, *options: str) -> None:
        self.folder = Folder(out)
        self.redis_port, self.nats_port = free_port(), free_port()
        (out / ".env").write_text(f"REDIS_PORT={self.redis_port}\nNATS_PORT={self.nats_port}\n")
        howl("init", "--host", HOST, "--out", out, *options)
        self._programs: dict[str, Program] = {}

    @property
    def path(self) -> Path:
        return self.folder.path

    def start_redis(self, port: int | None = None, certificate: Path | None = None, **more: str) -> None:
        """With another certificate and key (`certificate` is their path without its end) if one is given."""
        port, pair = port or self.redis_port, certificate or self.path / "redis" / "server"
        program, configuration = COMPOSE["services"]["redis"]["command"]
        assert program == "redis-server"
        # A later word wins: all else is as the file says.
        moved = {
            "tls-port": port, "bind": HOST, "aclfile": self.path / "redis" / "users.acl",
            "tls-cert-file": pair.with_suffix(".crt"), "tls-key-file": pair.with_suffix(".key"),
        }  # fmt: skip
        words = [word for name, value in moved.items() for word in (f"--{name}", str(value))]
        words += [word for name, value in more.items() for word in (f"--{name}", value)]
        self._start("redis", [redis_server(), str(self._mounted("redis", configuration)), *words], port)

    def start_nats(self, port: int | None = None, certificate: Path | None = None) -> None:
        port = port or self.nats_port
        program, *words = COMPOSE["services"]["nats"]["command"]
        assert program == "nats-server"
        assert words[-2:] == ["--store_dir", "/data"]
        data = self._data(f"nats-{port}")
        moved = ["--store_dir", str(data), "--addr", HOST, "--port", str(port), "--http_port", str(free_port())]
        folder = self._mounted("nats", COMPOSE["services"]["nats"]["working_dir"])
        if certificate is not None:
            folder = Path(shutil.copytree(folder, certificate.with_name(f"nats-{port}")))
            for end in (".crt", ".key"):
                shutil.copy(certificate.with_suffix(end), folder / f"server{end}")
        self._start("nats", [str(binaries.nats_server()), *words[:-2], *moved], port, folder)

    def stop(self) -> None:
        for program in self._programs.values():
            program.begin_end()
        for program in self._programs.values():
            program.end()

    def pid(self, name: str) -> int:
        """Of the `redis` or `nats` that everybody uses, which must be at work."""
        popen = self._programs[f"{name}-{getattr(self, f'{name}_port')}"].popen
        assert popen.poll() is None, f"{name} has ended"
        return popen.pid

    def data(self, name: str) -> Path:
        """Where the same keeps what it keeps."""
        return self._data(f"{name}-{getattr(self, f'{name}_port')}")

    def join(self, name: str = "worker") -> str:
        return join_string(self.folder, self.folder.existing(), name)

    def env(self, **settings: str) -> dict[str, str]:
        """That of a command in this folder."""
        return clean_environment(HOWL_ENV_FILE=str(self.folder.env), PYTHONPATH=str(ROOT), **settings)

    def worker_env(self, join: str | None = None, **settings: str) -> dict[str, str]:
        """That of a machine far away: one secret."""
        told = {"HOWL_JOIN": join or self.join(), "HOWL_TASK_MODULES": "tests.tasks"}
        return clean_environment(**told, PYTHONPATH=str(ROOT), **settings)

    def _start(self, name: str, argv: list[str], port: int, cwd: Path | None = None) -> None:
        log = self.folder.out / f"{name}-{port}.log"
        env = COMPOSE["services"][name].get("environment", {})
        self._programs[f"{name}-{port}"] = Program(argv, cwd or self._data(f"{name}-{port}"), port, log, env)

    def _data(self, name: str) -> Path:
        data = self.folder.out / "data" / name
        data.mkdir(parents=True, exist_ok=True)
        return data

    def _mounted(self, service: str, inside: str) -> Path:
        """Where the container's path is here, as its volumes say."""
        for volume in COMPOSE["services"][service]["volumes"]:
            outside, target, *_ = volume.split(":")
            if outside.startswith("./") and (inside + "/").startswith(target + "/"):
                return self.folder.out / outside / inside.removeprefix(target).lstrip("/")
        raise AssertionError(f"{inside} is not mounted into {service}")


class Listener:
    """Somebody on a port who greets one caller and listens to what is said."""

    def __init__(self, greeting: bytes, heard: bytearray) -> None:
        self._greeting, self._heard = greeting, heard
        self._socket = socket.create_server((HOST, 0))
        self._socket.settimeout(10)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._socket.close()

    def _listen(self) -> None:
        with suppress(OSError):  # the caller gives up
            caller, _ = self._socket.accept()
            with caller:
                caller.settimeout(2)
                caller.sendall(self._greeting)
                while said := caller.recv(4096):
                    self._heard += said


def ready(process: Process) -> Process:
    """A worker that consumes."""
    eventually(lambda: " ready." in process.output or process.popen.poll() is not None)
    assert process.popen.poll() is None, process.output
    return process


def serving(process: Process) -> Process:
    """A `howl server` that serves."""
    eventually(lambda: "server is up" in process.output or process.popen.poll() is not None)
    assert process.popen.poll() is None, process.output
    return process


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(2)
        return attempt.connect_ex((HOST, port)) == 0


def psql(url: str, script: Path) -> None:
    """As the postgres image runs scripts."""
    argv = [str(binaries.psql()), "-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", "-d", url, "-f", str(script)]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == 0, answer.stderr


def scalar(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None
