"""Redis and NATS as they face the internet: TLS with a private CA, and users who may do what howl.provision says."""

import json
import os
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from howl.embedded import binaries
from howl.provision import nats
from howl.provision.permissions import Grant, server_rules, worker_rules
from tests.helpers.support import eventually

#: Nobody's in particular: these servers live on loopback for the length of a test.
PASSWORD = "only-for-tests"
SERVER, ADMIN = "howl_server", "admin"

REDIS = """\
port 0
bind 127.0.0.1
tls-port {port}
tls-cert-file {folder}/server.crt
tls-key-file {folder}/server.key
tls-auth-clients no
aclfile {folder}/users.acl
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


class Secured:
    """Debian's redis-server over TLS, and nats-server, in one folder; a test must stop what it starts."""

    def __init__(self, folder: Path, prefix: str, subject_prefix: str, grants: list[Grant]) -> None:
        self.folder, self.prefix, self.subject_prefix, self.grants = folder, prefix, subject_prefix, grants
        self.redis_port, self.nats_port = _free_port(), _free_port()
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when both answer."""
        make_certificates(self.folder)
        (self.folder / "users.acl").write_text("".join(f"{line}\n" for line in self._users()))
        (self.folder / "redis.conf").write_text(REDIS.format(port=self.redis_port, folder=self.folder))
        (self.folder / "nats.conf").write_text(self._nats_configuration())
        self._run(redis_server(), "redis.conf")
        self._run(binaries.nats_server(), "--config", "nats.conf")
        eventually(self._answers)

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
            process.wait(10)

    @property
    def ca(self) -> Path:
        """Whom a client must trust: HOWL_CA_FILE."""
        return self.folder / "ca.crt"

    def redis_url(self, user: str) -> str:
        return f"rediss://{user}:{PASSWORD}@127.0.0.1:{self.redis_port}/0"

    def nats_url(self, user: str) -> str:
        return f"nats://{user}:{PASSWORD}@127.0.0.1:{self.nats_port}"

    def client(self, user: str) -> Any:
        """A client of Redis as this user, who repeats nothing by himself."""
        options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 10, "ssl_ca_certs": str(self.ca)}
        return redis.Redis.from_url(self.redis_url(user), **options)

    def denied(self) -> list[Any]:
        """What Redis has refused anybody, by its own log."""
        with self.client(ADMIN) as client:
            return [(entry["username"], entry["object"]) for entry in client.acl_log()]

    def forget_denied(self) -> None:
        with self.client(ADMIN) as client:
            client.acl_log_reset()

    def _users(self) -> list[str]:
        rules = {
            ADMIN: ["~*", "&*", "+@all"],
            SERVER: server_rules(self.prefix),
            **{grant.name: worker_rules(self.prefix, grant) for grant in self.grants},
        }
        return ["user default off", *(f"user {name} on >{PASSWORD} {' '.join(told)}" for name, told in rules.items())]

    def _nats_configuration(self) -> str:
        workers = [grant.name for grant in self.grants]
        accounts = nats.told(self.subject_prefix, SERVER, workers, dict.fromkeys((SERVER, *workers), PASSWORD))
        told = {
            "listen": f"127.0.0.1:{self.nats_port}",
            "jetstream": {"store_dir": str(self.folder / "nats"), "max_file_store": 2 << 30},
            "system_account": "SYS",
            "accounts": accounts | {"SYS": {"users": [{"user": ADMIN, "password": PASSWORD}]}},
        }
        return json.dumps(told)

    def _run(self, *argv: str | Path) -> None:
        with (self.folder / f"{Path(argv[0]).name}.log").open("wb") as log:
            self._running.append(subprocess.Popen(argv, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT))

    def _answers(self) -> bool:
        for process in self._running:
            assert process.poll() is None, [log.read_text() for log in self.folder.glob("*.log")]
        with suppress(redis.ConnectionError, OSError), self.client(ADMIN) as client:
            socket.create_connection(("127.0.0.1", self.nats_port), 1).close()
            return bool(client.ping())
        return False


def redis_server() -> str:
    """A redis-server that knows TLS: no embedded one does. Skips the test without one, but in CI."""
    found = shutil.which("redis-server")
    if found is None:
        assert not os.environ.get("CI"), "redis-server is missing"
        pytest.skip("redis-server, which the embedded servers do not bring with TLS, is not installed")
    return found


def make_certificates(folder: Path) -> None:
    """A private CA, and a certificate of 127.0.0.1."""
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    common = ["-days", "2", "-subj"]
    _quietly(folder, *request, *common, "/CN=HOWL test CA", "-keyout", "ca.key", "-out", "ca.crt")
    _quietly(
        folder, *request, *common, "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.crt", "-CA", "ca.crt",
        "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
        "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    ssl.create_default_context(cafile=str(folder / "ca.crt"))


def _quietly(folder: Path, *argv: str) -> None:
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=30)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
