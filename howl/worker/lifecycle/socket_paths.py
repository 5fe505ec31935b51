"""Where folders with sockets are made: systems take about a hundred bytes of a path, and TMPDIR may be deeper."""

import os
import sys
import tempfile

#: Bytes of a socket's path that the system takes (sys/un.h).
LONGEST = 107 if sys.platform == "linux" else 103
#: Where temporary files may be as well.
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # folders in them are made with mkdtemp, for one user alone


def folder_for(room: int) -> str:
    """The folder for temporary files, or a shorter one where a path of `room` more bytes is too long for a socket.

    If there is none that this user may write to, it is the longer one after all.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) + room <= LONGEST:
        return usual
    return next((folder for folder in SHORT if os.access(folder, os.R_OK | os.W_OK | os.X_OK)), usual)
