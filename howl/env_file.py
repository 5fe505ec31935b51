"""The `.env` of the working directory: who must own it to have it read, and what it may set.

The folder may be a stranger's: a checked-out repository, or files of a worker. A file that HOWL_ENV_FILE names is not
checked: somebody has chosen it.
"""

import logging
import os
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dotenv import dotenv_values
from pydantic_settings import BaseSettings, DotEnvSettingsSource, PydanticBaseSettingsSource

from howl.errors import NotConfigured

logger = logging.getLogger(__name__)

NAME = ".env"
#: Most bytes of the file; a server's own has 2,000.
LONGEST = 1 << 20

#: Settings that decide which code runs here, what it may do, or where a token is sent.
POWERS = (
    "agent_command", "agent_env", "agent_repository", "allow_commands", "app", "browser", "browser_sandbox",
    "checkout_schemes", "github_api", "home", "pulse_file", "task_modules", "web_allow_private", "work_folder",
    "worker_origin",
)  # fmt: skip
#: Settings of where the servers are, and who logs in to them; those that may hold a password come first.
SECRETS = (
    "join", "redis_url", "nats_url", "database_url", "redis_password", "nats_password", "postgres_password",
)  # fmt: skip
SERVERS = (
    *SECRETS, "manager_host", "ca_file", "tls", "redis_host", "redis_port", "redis_user", "nats_host", "nats_port",
    "nats_user", "postgres_host", "postgres_port", "postgres_db", "postgres_user",
)  # fmt: skip


class FileSettings(BaseSettings):
    """Settings of which a file may set only those that `allowed` lets through."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return pydantic's own sources in its order, the file's values limited by `allowed`."""
        if isinstance(dotenv_settings, DotEnvSettingsSource):
            dotenv_settings.env_vars = allowed(dotenv_settings.env_vars)
        return init_settings, env_settings, dotenv_settings, file_secret_settings


def chosen() -> str | None:
    """Return the file to read settings from: HOWL_ENV_FILE's (empty: none), or a `.env` here that is one's own."""
    named = os.environ.get("HOWL_ENV_FILE")
    if named is None:
        return NAME if _is_ours(Path(NAME)) else None
    return named or None


def allowed(read: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Return the variables that the file may set, by lower-case name; those left out are reported once."""
    if os.environ.get("HOWL_ENV_FILE") is not None:
        return read
    foreign = set(_names(POWERS))
    if _names(SECRETS) & _environment():
        # Otherwise a password from the environment could be sent to an address in the file.
        foreign |= _names(SERVERS)
    ignored = sorted(name.upper() for name, value in read.items() if name in foreign and value)
    if ignored:
        _tell(
            f"Not taken from {Path(NAME).absolute()}, which was only found here: {', '.join(ignored)}. Set it in the "
            "environment, or name the file in HOWL_ENV_FILE."
        )
    return {name: value for name, value in read.items() if name not in foreign}


def require_chosen_servers() -> None:
    """Raise NotConfigured if a file that was only found here names the servers that a worker would obey."""
    if os.environ.get("HOWL_ENV_FILE") is not None or not _is_ours(Path(NAME)):
        return
    told = {name.lower() for name, value in dotenv_values(NAME).items() if value}
    if _names(SERVERS) & told and not _names(SECRETS) & _environment():
        raise NotConfigured(
            f"A worker does what its servers tell it, and {Path(NAME).absolute()}, which names them, was only found "
            "here: if they are yours, name the file in HOWL_ENV_FILE."
        )


def _environment() -> set[str]:
    return {name.lower() for name, value in os.environ.items() if value}


def _names(fields: tuple[str, ...]) -> set[str]:
    return {name for field in fields for name in (field, f"howl_{field}")}


def _is_ours(path: Path) -> bool:
    """Return whether nobody else can have written it, nor version control, whose files everyone may read."""
    try:
        about = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(about.st_mode) or about.st_size > LONGEST:
        why = "is no file of settings"
    elif about.st_uid not in (0, os.geteuid()):
        why = "belongs to somebody else"
    elif about.st_mode & (0o022 if about.st_uid != os.geteuid() else 0o077):
        why = "is open to others (chmod 600 closes it)"
    elif not os.access(path, os.R_OK):
        why = "may not be read by you"
    else:
        return True
    _tell(f"{path.absolute()} is not read, because it {why}: name it in HOWL_ENV_FILE if it is to be.")
    return False


@cache
def _tell(line: str) -> None:
    """Log once per process, because settings are read many times."""
    logger.warning(line)
