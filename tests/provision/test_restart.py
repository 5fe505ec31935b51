"""A Redis of `howl init`'s that is killed and started again has all it had; the doctor knows one that would not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from howl.broker.scripts import PUSH, load_all
from howl.config import Settings, load_settings
from howl.connections.redis import redis_client
from howl.doctor.examine import run as examine
from howl.doctor.finding import Verdict
from howl.embedded import binaries
from howl.embedded.server import free_port
from howl.provision.redis import CONFIGURATION
from howl.provision.state import SERVER
from tests.helpers.servers import HOST, Program, Server, redis_server

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("patient_doctor")]

#: Both that HOWL allows, the oldest that there is to be had: Debian's, and the embedded one.
PROGRAMS = {"redis": redis_server, "valkey": binaries.valkey_server}
#: What speaks of encryption, which the embedded one has not, and what is another's here.
MOVED = ("port", "tls-", "aclfile")


@dataclass
class Unencrypted:
    """One of them with the configuration and the users that `howl init` made."""

    server: Server
    program: str
    port: int

    @property
    def users(self) -> Path:
        return self.server.path / "redis" / "users.acl"

    @property
    def settings(self) -> Settings:
        password = self.server.folder.existing().passwords[SERVER]
        return load_settings(redis_url=f"redis://{SERVER}:{password}@{HOST}:{self.port}/0", key_prefix="howl:")

    @contextmanager
    def running(self) -> Iterator[Any]:
        """A client of it; it is killed in the end."""
        data = self.server.folder.out / "data"
        data.mkdir(exist_ok=True)
        lines = [line for line in CONFIGURATION.splitlines() if not line.startswith(MOVED)]
        lines += [f"port {self.port}", f"bind {HOST}", f"aclfile {self.users}"]
        (data / "redis.conf").write_text("".join(f"{line}\n" for line in lines))
        running = Program([self.program, "redis.conf"], data, self.port, data / "log", {})
        try:
            with redis_client(self.settings) as client:
                yield client
        finally:
            running.popen.kill()
            running.popen.wait(10)


@pytest.fixture(params=PROGRAMS)
def made(request: pytest.FixtureRequest, out: Path) -> Unencrypted:
    return Unencrypted(Server(out), str(PROGRAMS[request.param]()), free_port())


def write(client: Any, settings: Settings) -> None:
    """Ten tasks by a script, and ten pairs of keys in transactions."""
    load_all(client)
    keys = [settings.key(name) for name in ("inflight", "pushed", "doorbell:pushed")]
    for number in range(10):
        assert PUSH.run(client, keys, [f"task-{number}", f"message-{number}"]) == 1
        with client.pipeline(transaction=True) as together:
            together.hset(settings.key("one"), number, "1")
            together.xadd(settings.key("two"), {"number": number})
            together.execute()


def counted(client: Any, settings: Settings) -> list[int]:
    return [client.llen(settings.key("pushed")), client.hlen(settings.key("one")), client.xlen(settings.key("two"))]


def log_finding(settings: Settings) -> Any:
    return next((each for each in examine(settings) if (each.server, each.check) == ("redis", "log")), None)


def test_what_scripts_and_transactions_wrote_is_there_after_a_kill(made: Unencrypted) -> None:
    with made.running() as client:
        write(client, made.settings)
    with made.running() as client:
        assert counted(client, made.settings) == [10, 10, 10]
        assert log_finding(made.settings) is None


def test_the_doctor_names_a_version_that_loses_it_where_the_default_user_may_not_all(made: Unencrypted) -> None:
    made.users.write_text(made.users.read_text().replace("user default off resetpass ~* &* +@all", "user default off"))
    with made.running() as client:
        write(client, made.settings)
        finding = log_finding(made.settings)
    with made.running() as client:
        is_lost = counted(client, made.settings) != [10, 10, 10]
    assert is_lost == (finding is not None)
    if finding is not None:
        assert finding.verdict is Verdict.FAILURE
        assert finding.said.startswith("redis 7.0.")
        assert "user default off resetpass ~* &* +@all" in finding.advice


def test_the_default_user_as_whom_redis_reads_its_log_lets_nobody_in(out: Path) -> None:
    server = Server(out)
    once = Retry(NoBackoff(), 0)
    options: dict[str, Any] = {
        "ssl": True, "ssl_ca_certs": str(server.folder.ca), "socket_timeout": 5, "retry": once,
    }  # fmt: skip
    logins: list[dict[str, str]] = [{"username": "default", "password": word} for word in ("", "default", "x")]
    try:
        server.start_redis()
        for login in ({}, *logins):
            with redis.Redis(HOST, server.redis_port, **options, **login) as client:
                with pytest.raises(redis.RedisError, match=r"(?i)authenticat|wrongpass|invalid username"):
                    client.get("howl:revoked")
    finally:
        server.stop()
