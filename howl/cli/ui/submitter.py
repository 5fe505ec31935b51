"""The name of the person at the command line, for the record."""

import getpass
import socket


def person() -> str:
    """Return `cli:<user>@<host>`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container's user may have a number and no name
    return f"cli:{user}@{socket.gethostname()}"
