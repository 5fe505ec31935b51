"""A folder of its own for one task, which is gone with it: also when the process that made it was killed."""

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

#: How the folders are called, and how many seconds one lives before it can be a dead task's.
PREFIX, SETTLED = "howl-work-", 60.0
#: A file in each, locked by the process that uses it for as long as it lives.
LOCK = "lock"
#: Seconds that deleting one may take.
PATIENCE = 120.0


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """A new, private folder below `parent` (None: where temporary files are); raises SettingsError without one."""
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
    """A process that was killed could not remove its folder."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or another task was quicker
            if _is_left_over(folder):
                remove(folder)


def remove(folder: Path) -> None:
    """Delete a folder whatever a program made of it: deeper than Python's recursion reaches, or not writable."""
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
    """Whether it is this user's, and nobody uses it, nor is about to."""
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
