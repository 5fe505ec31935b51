"""Demo and tests inherit nothing that could point at a real server."""

import os
import subprocess
import sys

import pytest

from howl.embedded.isolation import clean_environment, isolate

OURS = ("HOWL_REDIS_URL", "HOWL_HOME", "MANAGER_HOST", "WORKER_ID", "WORKER_TAGS", "REDIS_HOST", "REDIS_PASSWORD")
SERVERS = ("NATS_HOST", "NATS_URL", "POSTGRES_HOST", "POSTGRES_PASSWORD", "PGHOST", "PGSERVICE", "PGPASSWORD")
LIBRARIES = ("CELERY_BROKER_URL", "FLOWER_BASIC_AUTH", "C_FORCE_ROOT", "REMAP_SIGTERM", "PYTHONSTARTUP", "HTTP_PROXY")
DANGEROUS = (*OURS, *SERVERS, *LIBRARIES, "GITHUB_ACTIONS", "GITHUB_TOKEN", "XDG_STATE_HOME")

HARMLESS = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TMPDIR", "USER", "VIRTUAL_ENV", "PYTHONPATH")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DANGEROUS, *HARMLESS):
        monkeypatch.setenv(name, os.environ.get(name, "inherited"))


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_variable_that_could_name_a_server_is_dropped(environment: None, name: str) -> None:
    assert name not in clean_environment()


@pytest.mark.parametrize("name", HARMLESS)
def test_a_variable_that_programs_need_is_kept(environment: None, name: str) -> None:
    assert clean_environment()[name] == os.environ[name]


def test_no_env_file_is_read_and_only_loopback_is_accepted(environment: None) -> None:
    clean = clean_environment()
    assert (clean["HOWL_ENV_FILE"], clean["HOWL_LOOPBACK_ONLY"]) == ("", "1")


def test_given_settings_win(environment: None) -> None:
    assert clean_environment(HOWL_HOME="given")["HOWL_HOME"] == "given"


def test_isolating_a_process_reaches_its_children() -> None:
    script = (
        "import os, subprocess, sys; from howl.embedded.isolation import isolate; isolate(HOWL_HOME='given');"
        "subprocess.run([sys.executable, '-c', 'import os; print(sorted(n for n in os.environ if \"HOWL\" in n))'])"
    )
    inherited = os.environ | {"HOWL_REDIS_URL": "redis://elsewhere"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=inherited, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "['HOWL_ENV_FILE', 'HOWL_HOME', 'HOWL_LOOPBACK_ONLY']\n"


def test_isolate_replaces_the_environment_of_this_process(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    expected = clean_environment()
    isolate()
    assert dict(os.environ) == expected
