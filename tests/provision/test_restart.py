"""A Redis of `howl init`'s that is started again has all that it had."""

from pathlib import Path

import pytest
import redis

from howl.backend import redis_client
from howl.broker.scripts import PUSH, load_all
from howl.config import load_settings
from tests.provision.servers import HOST, Server

pytestmark = pytest.mark.servers


def test_what_scripts_and_transactions_wrote_is_there_after_a_restart(out: Path) -> None:
    server = Server(out)
    settings = load_settings(join=server.join("server"))
    keys = [settings.key(name) for name in ("inflight", "pushed", "doorbell:pushed")]
    try:
        server.start_redis()
        with redis_client(settings) as client:
            load_all(client)
            assert PUSH.run(client, keys, ["task-1", "message"]) == 1
            with client.pipeline(transaction=True) as together:
                together.set(settings.key("one"), "1")
                together.set(settings.key("two"), "2")
                together.execute()
        server.stop()
        server.start_redis()
        with redis_client(settings) as client:
            assert client.lrange(keys[1], 0, -1) == [b"message"]
            assert client.mget(settings.key("one"), settings.key("two")) == [b"1", b"2"]
    finally:
        server.stop()


def test_the_default_user_as_whom_redis_reads_its_log_lets_nobody_in(out: Path) -> None:
    server = Server(out)
    options = {"ssl": True, "ssl_ca_certs": str(server.folder.ca), "socket_timeout": 5}
    logins: list[dict[str, str]] = [{"username": "default", "password": word} for word in ("", "default", "x")]
    try:
        server.start_redis()
        for login in ({}, *logins):
            with redis.Redis(HOST, server.redis_port, **options, **login) as client:
                with pytest.raises(redis.RedisError, match=r"(?i)authenticat|wrongpass|invalid username"):
                    client.get("howl:revoked")
    finally:
        server.stop()
