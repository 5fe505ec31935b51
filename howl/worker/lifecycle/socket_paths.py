"""The place for folders with sockets: systems take about a hundred bytes of a path, and TMPDIR may be longer."""

import os
import sys
import tempfile

#: Most bytes of a socket's path that the system takes (sys/un.h).
LONGEST = 107 if sys.platform == "linux" else 103
#: Other folders where temporary files may be.
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # folders in them are made with mkdtemp, for one user alone


def folder_for(room: int) -> str:
    """Return the folder for temporary files, or a shorter one if `room` more bytes are too many for a socket's path.

    If there is none that this user may write to, it is the longer one after all.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) + room <= LONGEST:
        return usual
    return next((folder for folder in SHORT if os.access(folder, os.R_OK | os.W_OK | os.X_OK)), usual)
