"""What of Celery does not work over HOWL is refused in one sentence, when a worker or a client starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from howl.config import load_settings
from howl.connections import postgres
from howl.errors import SettingsError
from tests.helpers.support import PATIENCE

CELERY = str(Path(sys.executable).with_name("celery"))

ADDRESSES = {
    "redis://a:6379/0;redis://b:6379/0": "keeps to one",
    "redis://:pw@a;redis://:pw@b": "keeps to one",
    "redis://a/0?nonsense=1": "nonsense",
    "redis://a/0?socket_timeout=5&db=2": "db, socket_timeout",
    "redis://a/0?heartbeat=": "heartbeat",
    "redis://a/queue": "number of a database",
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_not_all_who_dial_it_understand_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=ADDRESSES[url]) as refused:
        load_settings(redis_url=url)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis://localhost", "redis://localhost/", "redis://:p%3Bw%3F@127.0.0.1:1/15", "rediss://u:p@[::1]:1/0"]
)
def test_an_address_of_one_redis_is_taken(url: str) -> None:
    assert load_settings(redis_url=url).redis_url == url


@pytest.mark.parametrize("name", ["redis_host", "nats_host", "manager_host"])
def test_several_hosts_are_refused_too(name: str) -> None:
    with pytest.raises(SettingsError, match="one host"):
        load_settings(**{name: "a;b"})


def test_an_option_that_postgresqls_library_does_not_know_is_named() -> None:
    with pytest.raises(SettingsError, match="nonsense"):
        postgres.engine("postgresql://a:pw@b/c?sslmode=require&nonsense=1")
    assert postgres.engine("postgresql://a:p%25w@b/c?sslmode=require&options=-c%20geqo%3Doff")


STARTS = {
    "a client": (("call", "tests.add"), {"HOWL_REDIS_URL": "redis://a/0;redis://b/0"}, "HOWL keeps to one"),
    "a worker": (("worker",), {"HOWL_REDIS_URL": "redis://127.0.0.1:1/0?nonsense=1"}, "such as nonsense"),
    "green threads": (
        ("worker", "-P", "custom"), {"CELERY_CUSTOM_WORKER_POOL": "celery.concurrency.gevent:TaskPool"},
        "not in celery.concurrency.gevent: start it with `--pool threads`",
    ),
    "spawned processes": (("worker", "--pool-start-method", "spawn"), {}, "fork"),
}  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
def test_it_is_one_sentence_and_no_traceback(start: str, worker_env: dict[str, str]) -> None:
    words, changes, said = STARTS[start]
    answer = subprocess.run(
        [CELERY, "-A", "howl", *words], env=worker_env | changes, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert (answer.returncode, said in answer.stderr) == (1, True), answer.stderr
    assert "Traceback" not in answer.stderr
