"""The `.env` of the working directory: read if it is one's own, and not obeyed in what loads code."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from howl import env_file
from howl.config import Settings, load_settings
from howl.errors import NotConfigured
from tests.helpers.support import Process

#: What a file that was only found may say besides where servers are; a new setting is put here or into POWERS.
HARMLESS = {
    "agent_timeout", "artifact_count", "artifact_limit", "artifact_retention", "artifact_room", "artifact_run_count",
    "artifact_run_limit", "artifact_share", "budget_share", "chord_retention", "record_limit",
    "backlog_limit", "budget_minutes", "burst_concurrency", "burst_cooldown", "burst_most", "burst_runtime",
    "burst_schedule", "burst_when", "burst_workers", "checkout_limit", "flower_basic_auth", "github_ref",
    "github_repository", "github_token", "github_workflow", "heartbeat_interval", "key_prefix", "lease",
    "loopback_only", "lost_after", "outcome_limit", "push_again_after", "queues", "subject_prefix", "task_events",
    "worker_deadline", "worker_id", "worker_tags",
}  # fmt: skip
URL = "redis://127.0.0.1:1/0"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the `.env` of a working directory, for a person who has set nothing."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("HOWL_", "REDIS_", "NATS_", "POSTGRES_", "MANAGER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOWL_HOME", str(tmp_path))
    env_file._tell.cache_clear()

    def _write(*lines: str, mode: int = 0o600) -> Path:
        path = tmp_path / ".env"
        path.write_text("".join(f"{line}\n" for line in lines))
        path.chmod(mode)
        return path

    return _write


def test_each_setting_is_one_that_a_found_file_may_give_or_may_not() -> None:
    sorted_ = [*env_file.POWERS, *env_file.SERVERS, *HARMLESS]
    assert sorted(sorted_) == sorted(Settings.model_fields)


def test_ones_own_file_says_where_servers_are(write: Any) -> None:
    write(f"HOWL_REDIS_URL={URL}", "HOWL_QUEUES=a,b")
    settings = load_settings()
    assert (settings.redis_url, settings.queues) == (URL, ("a", "b"))


@pytest.mark.parametrize("field", env_file.POWERS)
@pytest.mark.parametrize("spelled", ["HOWL_{}", "{}", "howl_{}"])
def test_what_loads_code_or_allows_it_is_not_taken_from_a_found_file(
    write: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, field: str, spelled: str
) -> None:
    monkeypatch.delenv("HOWL_HOME")
    values = {"worker_origin": "docker", "checkout_schemes": "file", "browser_sandbox": "0", "allow_commands": "1",
              "web_allow_private": "1", "github_api": "https://evil.example"}  # fmt: skip
    without = load_settings()
    path = write(f"{spelled.format(field.upper())}={values.get(field, 'strange')}")
    with caplog.at_level(logging.WARNING):
        assert load_settings() == load_settings() == without
    assert [record.message.count(field.upper()) for record in caplog.records] == [1]
    monkeypatch.setenv("HOWL_ENV_FILE", str(path))
    assert (load_settings() == without) == (spelled == "{}")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o660, 0o666])
def test_a_file_that_others_may_read_or_write_is_not_read(
    write: Any, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    write(f"HOWL_REDIS_URL={URL}", mode=mode)
    assert load_settings().redis_url is None
    assert "chmod 600" in caplog.text
    assert URL not in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_elses_is_not_read(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    os.chown(write(f"HOWL_REDIS_URL={URL}"), 65534, 65534)
    assert load_settings().redis_url is None
    assert "belongs to somebody else" in caplog.text


def test_what_is_no_file_is_neither_read_nor_waited_for(write: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env", 0o600)
    assert load_settings().redis_url is None


def test_a_file_that_is_named_is_read_whatever_it_is(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f"HOWL_REDIS_URL={URL}", "HOWL_TASK_MODULES=mine", mode=0o644)
    monkeypatch.setenv("HOWL_ENV_FILE", str(path))
    settings = load_settings()
    assert (settings.redis_url, settings.task_modules) == (URL, ("mine",))


@pytest.mark.parametrize("secret", ["REDIS_PASSWORD", "HOWL_NATS_PASSWORD", "howl_database_url", "POSTGRES_PASSWORD"])
def test_a_password_of_the_environment_is_sent_to_no_address_of_a_found_file(
    write: Any, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    write("MANAGER_HOST=evil.example", "HOWL_REDIS_HOST=evil.example", "NATS_HOST=evil.example", "HOWL_TLS=0",
          "POSTGRES_HOST=evil.example", f"HOWL_REDIS_URL={URL}")  # fmt: skip
    monkeypatch.setenv(secret, "postgresql://mine@127.0.0.1/x")
    settings = load_settings()
    urls = (settings.redis_url, settings.nats_url, settings.database_url)
    assert {url for url in urls if url} <= {"postgresql://mine@127.0.0.1/x"}


def test_no_worker_obeys_servers_that_a_found_file_names(
    write: Any, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(f"HOWL_REDIS_URL={URL}")
    env = {name: value for name, value in os.environ.items() if name != "HOWL_ENV_FILE"}
    for line, program in ((("worker", "--name", "w"), "howl"), (("-A", "howl", "worker", "-P", "solo"), "celery")):
        refused = start(*line, env=env, program=program)
        assert refused.wait() == 1
        assert "was only found here" in refused.output
    with pytest.raises(NotConfigured, match="name the file in HOWL_ENV_FILE"):
        env_file.require_chosen_servers()
    monkeypatch.setenv("HOWL_REDIS_URL", URL)
    env_file.require_chosen_servers()  # the file's counts for nothing
    monkeypatch.delenv("HOWL_REDIS_URL")
    monkeypatch.setenv("HOWL_ENV_FILE", str(path))
    env_file.require_chosen_servers()


def test_an_address_in_the_environment_may_stand_beside_the_files_passwords(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("REDIS_HOST=one.example", "REDIS_PASSWORD=secret")
    monkeypatch.setenv("REDIS_HOST", "two.example")
    assert load_settings().redis_url == "redis://:secret@two.example:6379/0"
