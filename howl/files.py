"""Files of the state folder: private files, passwords and locks."""

import fcntl
import json
import os
import random
import secrets
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

#: Servers and roles that have a password of their own.
PASSWORD_NAMES = ("redis", "nats", "postgres", "howl")


class Passwords:
    """Random passwords by name, made once for a state folder and kept in it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, name: str) -> str:
        return self._all[name]

    def hide_in(self, text: str) -> str:
        """Return `text` with all of the passwords masked."""
        for password in self._all.values():
            text = text.replace(password, "********")
        return text

    @cached_property
    def _all(self) -> dict[str, str]:
        if not self._path.exists():
            write_private(self._path, json.dumps({name: secrets.token_hex(24) for name in PASSWORD_NAMES}))
        return {name: str(value) for name, value in json.loads(self._path.read_text()).items()}


def write_private(path: Path, text: str) -> None:
    """Replace `path` atomically by a file that only its owner may read; a crash leaves the old or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def take_lock(path: Path, patience: float) -> BinaryIO:
    """Take an exclusive flock that lasts until the returned file, and every inherited copy of it, is closed.

    Raises BlockingIOError if another process still holds it after `patience` seconds.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise
            time.sleep(random.uniform(0.01, 0.03))  # noqa: S311 (jitter, not a secret)
        else:
            return file
