"""A program that tells who it is, then becomes another one.

`python witness.py NONCE_FILE PROGRAM [ARGUMENT ...]` prints a line of JSON with the digest of the nonce file and its
process id, then turns into the program: same process, its exit status, its output after that line. A script for
workers: it imports the standard library alone.
"""

import hashlib
import json
import os
import sys
from pathlib import Path


def main(nonce: str, *command: str) -> None:
    """Does not return, unless the program cannot be started."""
    testimony = {"nonce_sha256": hashlib.sha256(Path(nonce).read_bytes()).hexdigest(), "pid": os.getpid()}
    sys.stdout.write(json.dumps(testimony) + "\n")
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
