"""A program that reports its process id, then becomes another program.

`python witness.py NONCE_FILE PROGRAM [ARGUMENT ...]` prints a line of JSON with the digest of the nonce file and its
process id, then executes the program in the same process: its exit status, its output after that line. A script for
workers: it imports only the standard library.
"""

import hashlib
import json
import os
import sys
from pathlib import Path


def main(nonce: str, *command: str) -> None:
    """Print the testimony and execute the command; never returns, raises OSError if that cannot be started."""
    testimony = {"nonce_sha256": hashlib.sha256(Path(nonce).read_bytes()).hexdigest(), "pid": os.getpid()}
    sys.stdout.write(json.dumps(testimony) + "\n")
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
