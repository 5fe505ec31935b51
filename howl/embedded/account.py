"""The account that PostgreSQL runs as: it refuses root, so root runs it as `nobody`, who must reach its files."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from howl.errors import EmbeddedServerError

ACCOUNT_NAME = "nobody"


@dataclass(frozen=True)
class Account:
    """A user that a child process becomes."""

    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give one file or folder to this user."""
        os.chown(path, self.uid, self.gid)


def postgres_account() -> Account | None:
    """Return the account to switch to, or None unless this process runs as root; raises EmbeddedServerError."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root and there is no user `{ACCOUNT_NAME}`: run as an ordinary user."
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way down to `path`, itself included, that other users may not enter."""
    whole = path.resolve()
    return next((folder for folder in (*reversed(whole.parents), whole) if not _enterable(folder)), None)


def _enterable(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)
