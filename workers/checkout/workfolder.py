"""A private folder for one task, deleted after it, also if the process that made it was killed."""

import contextlib
import fcntl
import logging
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from howl.errors import SettingsError
from workers.process.spec import passed_on

log = logging.getLogger(__name__)

#: Prefix of the folders' names, and the age in seconds from which one can be left over from a dead task.
PREFIX, SETTLED = "howl-work-", 60.0
#: A file in each folder, locked by the process that uses it for as long as that lives.
LOCK = "lock"
#: Most seconds that one command of the deletion may take.
PATIENCE = 120.0


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Provide a new, private folder below `parent` (None: the temporary directory); raises SettingsError on failure."""
    root = parent or Path(tempfile.gettempdir())
    clear_away_what_the_dead_left(root)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    except OSError as error:
        raise SettingsError(
            f"No folder can be made in {root} ({error.strerror}): see to it, or set HOWL_WORK_FOLDER."
        ) from None
    try:
        with _locked(folder):
            yield folder
    finally:
        remove(folder)


def clear_away_what_the_dead_left(root: Path) -> None:
    """Delete folders whose process was killed before it could remove them."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is another user's, or another task removed it first
            if _is_left_over(folder):
                remove(folder)


def remove(folder: Path) -> None:
    """Delete a folder in whatever state a program left it: deeper than Python's recursion reaches, or not writable."""
    if not _ends_well("rm", "-rf", "--", str(folder)):
        # -R follows no link.
        _ends_well("chmod", "-R", "u+rwx", "--", str(folder))
        if not _ends_well("rm", "-rf", "--", str(folder)):
            log.warning("The folder %s could not be deleted: it is tried again before the next agent's work.", folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_left_over(folder: Path) -> bool:
    """Return whether the folder is this user's, is unused, and is older than SETTLED seconds."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or time.time() - about.st_mtime < SETTLED:
        return False
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _ends_well(*argv: str) -> bool:
    try:
        return subprocess.run(argv, env=passed_on(), capture_output=True, timeout=PATIENCE, check=False).returncode == 0
    except (subprocess.TimeoutExpired, OSError):
        return False
