"""Redis and NATS as they face the internet: certificates of any kind, and users with rights of their own."""

import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from howl.config import Settings, load_settings
from howl.embedded import binaries
from howl.embedded.server import free_port
from howl.provision import nats
from howl.provision.permissions import Grant, server_rules, worker_rules
from tests.helpers.support import listens

#: Nobody's: these servers live on loopback for the length of a test.
PASSWORD = "only-for-tests"
#: Another address of this machine, which no setting takes for it.
ELSEWHERE = "127.0.0.2"
REDIS = """\
port 0
bind {host}
tls-port {port}
tls-cert-file {folder}/server.crt
tls-key-file {folder}/server.key
tls-auth-clients no
aclfile {folder}/users.acl
dir {folder}
save ""
"""


@dataclass(frozen=True)
class Secured:
    """Both servers, at work.

    Their users are `server`, `worker`, `older` whose rights are of before there were files, and `admin` who may
    everything.
    """

    folder: Path
    redis_port: int
    nats_port: int
    host: str
    prefix: str = "howl"

    def settings(self, user: str, password: str = PASSWORD, ca: str = "ca.crt") -> Settings:
        """Those of a machine that logs in as this user."""
        login = f"{user}:{password}@{self.host}"
        return load_settings(
            redis_url=f"rediss://{login}:{self.redis_port}/0", nats_url=f"tls://{login}:{self.nats_port}",
            ca_file=self.folder / ca, key_prefix=f"{self.prefix}:", subject_prefix=self.prefix, loopback_only=False,
        )  # fmt: skip


@contextmanager
def serve(
    folder: Path, *names: str, days: float = 90, jetstream: bool = True, host: str = "127.0.0.1"
) -> Iterator[Secured]:
    """Servers whose certificate is for these names, and for so many days yet."""
    write_certificates(folder, names or ("localhost", host), days)
    made = Secured(folder, free_port(), free_port(), host)
    _configure(made, jetstream)
    running = [
        _start(folder, redis_server(), folder / "redis.conf"),
        _start(folder, binaries.nats_server(), "--config", "nats.conf"),
    ]
    try:
        for port in (made.redis_port, made.nats_port):
            listens(port, host)
        yield made
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
            process.wait(10)


def redis_server() -> str:
    """Debian's, for the embedded one speaks no TLS."""
    found = shutil.which("redis-server")
    if found is None:
        assert "CI" not in os.environ, "redis-server is not installed"
        pytest.skip("redis-server, which tests of TLS need, is not installed")
    return found


def _configure(made: Secured, jetstream: bool) -> None:
    rules = {"server": server_rules(f"{made.prefix}:"), "worker": worker_rules(f"{made.prefix}:", Grant("worker"))}
    rules["older"] = worker_rules(f"{made.prefix}:", Grant("older"))
    rules["admin"] = ["~*", "&*", "+@all"]
    users = ["user default off", *(f"user {name} on >{PASSWORD} {' '.join(may)}" for name, may in rules.items())]
    (made.folder / "users.acl").write_text("".join(f"{line}\n" for line in users))
    (made.folder / "redis.conf").write_text(REDIS.format(host=made.host, port=made.redis_port, folder=made.folder))
    accounts = nats.told(made.prefix, "server", ["worker"], dict.fromkeys(("server", "worker"), PASSWORD))
    older = {"publish": [f"{made.prefix}.events.*.*"], "subscribe": [f"{made.prefix}.inbox.>"]}
    accounts["HOWL"]["users"].append({"user": "older", "password": PASSWORD, "permissions": older})
    accounts["HOWL"]["users"].append({"user": "admin", "password": PASSWORD})
    if not jetstream:
        del accounts["HOWL"]["jetstream"]
    told = {
        "listen": f"{made.host}:{made.nats_port}",
        "tls": {"cert_file": "server.crt", "key_file": "server.key", "handshake_first": True},
        "accounts": accounts,
    }
    storage = {"jetstream": {"store_dir": "nats", "max_file_store": 1 << 30}} if jetstream else {}
    (made.folder / "nats.conf").write_text(json.dumps(told | storage))


def _start(folder: Path, *argv: str | Path) -> subprocess.Popen[bytes]:
    with (folder / f"{Path(argv[0]).name}.log").open("wb") as log:
        return subprocess.Popen(argv, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def write_certificates(folder: Path, names: tuple[str, ...], days: float) -> None:
    """ca.crt, other-ca.crt, server.crt and server.key."""
    authority, end = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) + timedelta(days=days)
    for name, key in (("ca", authority), ("other-ca", ec.generate_private_key(ec.SECP256R1()))):
        _write(folder / f"{name}.crt", _certificate(key, key, end + timedelta(days=99), ca=True))
    own = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "server.crt", _certificate(own, authority, end, names=names))
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)


def _certificate(
    key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, end: datetime, *,
    names: tuple[str, ...] = (), ca: bool = False,
) -> x509.Certificate:  # fmt: skip
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "HOWL's tests")])
    built = (
        x509.CertificateBuilder()
        .subject_name(issuer if ca else x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=1000))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        built = built.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=True)
    return built.sign(signer, hashes.SHA256())


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
