"""A worker's environment, which brings it secrets: programs of its user could read it as long as the worker lives."""

import ctypes
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from celery.signals import worker_shutdown

from howl.config import Settings, keep, secret_variables
from workers.process.spec import PASSED_ON

logger = logging.getLogger(__name__)

#: Variables that give access to servers or to GitHub and are no settings; and the files that GitHub's runner obeys.
CREDENTIALS = re.compile(
    r"PGPASSWORD|CELERY_(BROKER|RESULT)\w*|(READER|PERMANENT)_PASSWORD|(GITHUB|GH)_TOKEN|ACTIONS_\w*TOKEN"
    r"|GITHUB_(ENV|PATH|OUTPUT|STATE|STEP_SUMMARY)"
)
#: <linux/prctl.h>: whether other processes of the same user may inspect a process.
PR_SET_DUMPABLE = 4
#: Fields of /proc/self/stat, after the program's name, with the environment's address: 50 and 51 of proc(5).
ENVIRONMENT = slice(47, 49)

#: What was taken out of the environment, by variable.
_withdrawn: dict[str, str] = {}


def withdraw(settings: Settings) -> None:
    """Keep these settings in memory; remove them and every other secret from this process's environment.

    On Linux, no other process of its user can then read that environment or its memory, nor trace it. Forked children
    inherit all this, so it is called before there are any; the programs they start have their own environment, and are
    open to their user again.
    """
    keep(settings)
    secret = secret_variables() | {name for name in settings.agent_env if not PASSED_ON.fullmatch(name)}
    for name in list(os.environ):
        if (
            name in secret or name.upper() in secret or CREDENTIALS.fullmatch(name)
        ):  # pydantic ignores the case of a name
            _withdrawn[name] = os.environ.pop(name)
    if sys.platform == "linux":
        _wipe()
        _shut()


def told(name: str) -> str | None:
    """Return the value of a variable in the environment, or from before it was withdrawn."""
    return _withdrawn.get(name, os.environ.get(name))


def _wipe() -> None:
    """Overwrite what the kernel shows as this process's environment; first move what is left of it elsewhere."""
    for name, value in os.environb.items():
        os.putenv(name, value)
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    begin, end = map(int, fields[ENVIRONMENT])
    if 0 < begin < end:
        ctypes.memset(begin, 0, end - begin)
    else:
        logger.warning("This system hides where the environment lies: programs of this user can read it.")


def _shut() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) was refused")


@worker_shutdown.connect
def _put_back(**_: Any) -> None:
    """Restore the environment: after SIGHUP, Celery executes the same program again, which is configured by it."""
    os.environ.update(_withdrawn)
