"""What the repository promises about its own files: no registry named, hashed pins, known settings, a sound server."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip._internal.models.index import PyPI
from pydantic import AliasChoices
from ruamel.yaml import YAML

from howl.config import Settings

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-server.lock", "requirements-worker.lock")
#: `name==version`, perhaps a marker, and at least one hash: nothing else may stand in a lock.
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[^ ;]+)( ; [^\\]+?)?( +--hash=sha256:[0-9a-f]{64})+")
#: Folders in which people keep their clones.
HOME_FOLDER = re.compile(r"/(?:home|Users)/(?!you/)[A-Za-z]|/roo[t]/")
#: Settings that are not a person's to choose: demo, tests and `howl worker` set them.
NOT_FOR_PEOPLE = {"loopback_only", "worker_deadline"}
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
LONG_RUNNING = sorted(set(COMPOSE["services"]) - {"migrate"})


def test_no_file_names_the_host_of_a_package_registry() -> None:
    hosts = set(registry_hosts())
    assert hosts
    assert [(path.name, host) for path, text in texts() for host in hosts if host in text] == []


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    here = f"{ROOT}/"
    assert [path.name for path, text in texts() if here in text or HOME_FOLDER.search(text)] == []


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (path, link)
        for path, text in texts()
        if path.suffix == ".md"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    ]
    assert links
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_nothing_but_pins_with_their_hashes(lock: str) -> None:
    lines = lock_lines(lock)
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_an_image_s_lock_pins_what_the_developers_lock_pins(lock: str) -> None:
    assert pins(lock).items() <= pins(LOCKS[0]).items()


def test_the_lock_satisfies_every_requirement_of_the_project() -> None:
    locked = pins(LOCKS[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = chain(project["dependencies"], *project["optional-dependencies"].values())
    wanted = [requirement for requirement in map(Requirement, stated) if requirement.name != project["name"]]
    assert wanted
    assert [str(each) for each in wanted if not each.specifier.contains(locked[canonicalize_name(each.name)])] == []


def test_a_burst_machine_installs_nothing_that_reads_the_database_or_draws_tables() -> None:
    unwanted = {"sqlalchemy", "psycopg", "alembic", "flower", "mcp", "cryptography", "rich", "pygments"}
    assert not unwanted & pins("requirements-worker.lock").keys()


def test_the_example_names_every_setting_once_and_nothing_else() -> None:
    settings = [variable(field) for field in Settings.model_fields if field not in NOT_FOR_PEOPLE]
    assert sorted(example()) == sorted({*settings, *compose_variables()})


def test_the_example_shows_the_defaults() -> None:
    defaults = {field: info.default for field, info in Settings.model_fields.items() if field not in NOT_FOR_PEOPLE}
    simple = {field: default for field, default in defaults.items() if isinstance(default, str | int | float)}
    shown = Settings.model_validate({field: example()[variable(field)] for field in simple})
    assert {field: getattr(shown, field) for field in simple} == simple


@pytest.mark.parametrize("service", ["postgres", "flower"])
def test_the_record_and_flower_are_published_on_loopback_only(service: str) -> None:
    ports = COMPOSE["services"][service]["ports"]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_permanent_worker_cannot_reach_postgresql() -> None:
    worker, postgres = COMPOSE["services"]["worker"], COMPOSE["services"]["postgres"]
    assert worker["networks"]
    assert not set(worker["networks"]) & set(postgres["networks"])
    assert not [name for name in worker["environment"] if "POSTGRES" in name or "DATABASE" in name]


def test_redis_and_nats_are_told_no_secret_but_in_their_mounted_folder() -> None:
    told = {name: COMPOSE["services"][name].get("environment", {}) for name in ("redis", "nats")}
    assert told == {"redis": {}, "nats": {"GOMEMLIMIT": "160MiB"}}


def test_whoever_talks_to_redis_checks_its_certificate() -> None:
    talking = {name: service["environment"] for name, service in COMPOSE["services"].items()
               if "REDIS_HOST" in (service.get("environment") or {})}  # fmt: skip
    assert talking
    assert {told["HOWL_TLS"] for told in talking.values()} == {"1"}
    assert all(told["HOWL_CA_FILE"] and COMPOSE["services"][name]["volumes"] for name, told in talking.items())


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_long_running_service_is_watched_restarted_and_bounded(service: str) -> None:
    stated = COMPOSE["services"][service]
    assert stated["healthcheck"]["test"]
    assert stated["restart"] == "unless-stopped"
    assert stated["mem_limit"]
    assert stated["logging"]["options"]["max-size"]


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_an_image_is_named_by_its_version(service: str) -> None:
    # Others' also by their digest: whoever can move a tag could bring other programs in.
    digest = "" if "build" in COMPOSE["services"][service] else "@sha256:[0-9a-f]{64}"
    assert re.search(rf":\d+\.\d+\.?\d*(-\w+)?{digest}$", COMPOSE["services"][service]["image"])


def test_the_images_of_workers_and_server_are_built_on_a_digest() -> None:
    bases = re.findall(r"(?m)^FROM (\S+)", (ROOT / "workers" / "Dockerfile").read_text())
    assert [base for base in bases if not re.search("@sha256:[0-9a-f]{64}$", base)] == ["base", "base"]


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_a_container_may_do_no_more_than_its_user_and_has_few_processes(service: str) -> None:
    stated = COMPOSE["services"][service]
    assert (stated["cap_drop"], stated["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert 0 < stated["pids_limit"] <= 512
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "network_mode"} & stated.keys()
    # A task's files do not fit into memory.
    assert stated["read_only"] is (service != "worker")


def test_what_a_container_that_is_read_only_writes_to_is_a_volume_or_memory() -> None:
    services = COMPOSE["services"]
    assert [volume for name in services for volume in services[name].get("volumes", ()) if volume.startswith("./")
            and not volume.endswith(":ro")] == []  # fmt: skip
    assert "redis:/data" in services["redis"]["volumes"]
    assert "nats:/data" in services["nats"]["volumes"]
    assert "postgres:/var/lib/postgresql" in services["postgres"]["volumes"]
    assert any(place.startswith("/var/run/postgresql:") for place in services["postgres"]["tmpfs"])


def test_no_variable_stands_in_a_command_line_where_ps_would_show_it() -> None:
    commands = {name: str(service.get("command", "")) for name, service in COMPOSE["services"].items()}
    assert [name for name, command in commands.items() if "$" in command] == []


def registry_hosts() -> Iterator[str]:
    """Of Python's, and of this machine's npm and Debian packages: found at run time, for here they may not stand."""
    yield from (PyPI.netloc, PyPI.file_storage_domain)
    addresses = [path.read_text() for path in Path("/etc/apt").glob("sources.list*/*") if path.is_file()]
    if shutil.which("npm"):
        addresses.append(output("npm", "config", "get", "registry"))
    yield from re.findall(r"https?://([^/\s]+)", "\n".join(addresses))


def texts() -> Iterator[tuple[Path, str]]:
    """Every file that is, or is about to be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone: git cannot say which files belong to the repository")
    listed = output("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = [ROOT / name for name in listed.split("\0") if name]
    yield from ((path, path.read_text(errors="replace")) for path in paths if path.is_file())


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def lock_lines(lock: str) -> list[str]:
    """One line a package, comments left out."""
    stated = re.sub(r"(?m)^ *#.*\n", "", (ROOT / lock).read_text()).replace("\\\n", "")
    return [line.strip() for line in stated.splitlines() if line.strip()]


def pins(lock: str) -> dict[str, str]:
    """Version by package."""
    return {match["name"]: match["version"] for line in lock_lines(lock) if (match := PIN.fullmatch(line))}


def variable(field: str) -> str:
    """The name a person would write: the plain one where there is one."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[-1]) if isinstance(alias, AliasChoices) else f"HOWL_{field.upper()}"


def example() -> dict[str, str]:
    """Value by variable in .env.example, those that are commented out included."""
    stated = re.findall(r"(?m)^(?:# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text())
    assert len(stated) == len(dict(stated)), "a variable stands twice"
    return dict(stated)


def compose_variables() -> set[str]:
    """What docker-compose.yml takes from .env."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
