"""The servers of `howl up` on this machine: where they keep data, whether they run, and on which ports."""

import fcntl
import json
import os
import socket
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

#: Address on which its servers listen.
HOST = "127.0.0.1"

#: The state folder of a service.
SYSTEMS = Path("/var/lib/howl")


def default_home() -> Path:
    """Return the state folder; root's is not in its home, because the user that runs PostgreSQL must enter it.

    Nor is it in a home that does not exist: a container may run as a user without an entry in passwd.
    """
    if os.geteuid() == 0:
        return SYSTEMS
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "howl"
    except RuntimeError:  # what `Path.home` raises without HOME and an entry in passwd
        return SYSTEMS


def running_stack(home: Path) -> dict[str, str]:
    """Return URLs by field name of the `howl up` that holds this state folder's lock; empty when none does."""
    try:
        with (home / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return {}  # nobody holds it: running.json is left over
    except BlockingIOError:
        return _read_running(home / "running.json")
    except OSError:
        return {}


def last_ports(home: Path) -> dict[str, int]:
    """Return each server's port when `howl up` last ran in this state folder; empty if unknown."""
    try:
        told = json.loads((home / "ports.json").read_text())
        return {str(server): int(port) for server, port in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def outdated(home: Path, urls: Collection[str]) -> str | None:
    """Return what to do if one of these addresses does not answer because it is from an earlier `howl up`'s `howl env`.

    None if none is, or if all answer.
    """
    here = [url for url in urls if urlsplit(url).hostname == HOST]
    silent = {url: urlsplit(url).port for url in here if not _listens(urlsplit(url).port)}
    running = running_stack(home).values()
    if running and silent.keys() - set(running):
        return (
            "`howl up` runs and listens elsewhere: `unset HOWL_REDIS_URL HOWL_NATS_URL HOWL_DATABASE_URL`, or take them"
            " out of .env, and its servers are found."
        )
    if not running and {*silent.values()} & {*last_ports(home).values()}:
        return "`howl up`, which listened there, does not run: start it again."
    return None


def _listens(port: int | None) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(0.5)
        return port is None or attempt.connect_ex((HOST, port)) == 0


def _read_running(path: Path) -> dict[str, str]:
    try:
        stated = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # `howl up` is starting and has not written it yet
    return {field: stated[field] for field in ("redis_url", "nats_url", "database_url") if field in stated}
