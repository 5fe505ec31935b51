"""Permissions that the owner of this worker grants, as opposed to what the sender of a task asks for."""

from functools import cache

from howl.config import Settings, load_settings
from howl.errors import CommandsNotAllowed


@cache
def settings() -> Settings:
    """Return this worker's settings, read when a task first needs them; raises SettingsError."""
    return load_settings()


def require_commands(task: str) -> None:
    """Raise CommandsNotAllowed on a permanent worker whose owner has not agreed to run programs on it."""
    if settings().worker_origin == "server" and not settings().allow_commands:
        raise CommandsNotAllowed(
            f"{task} does not run on a permanent worker: set HOWL_ALLOW_COMMANDS=1 there, or send it to a burst worker."
        )
