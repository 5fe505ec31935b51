"""This machine's own servers, those of `howl up`: where they keep their data, and whether they run."""

import fcntl
import json
import os
from pathlib import Path

#: The state folder of a service.
SYSTEMS = Path("/var/lib/howl")


def default_home() -> Path:
    """The state folder: root's must be enterable by the user PostgreSQL runs as, so it is not in root's home.

    Nor is it where there is no home: a container may run as a user whom nobody there knows.
    """
    if os.geteuid() == 0:
        return SYSTEMS
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "howl"
    except RuntimeError:  # what `Path.home` raises without HOME and an entry in passwd
        return SYSTEMS


def running_stack(home: Path) -> dict[str, str]:
    """URLs by field name of the `howl up` that holds the lock of this state folder; empty when none does."""
    try:
        with (home / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return {}  # nobody holds it: whatever running.json says is left over
    except BlockingIOError:
        return _read_running(home / "running.json")
    except OSError:
        return {}


def _read_running(path: Path) -> dict[str, str]:
    try:
        stated = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # `howl up` is starting and has not written it yet
    return {field: stated[field] for field in ("redis_url", "nats_url", "database_url") if field in stated}
