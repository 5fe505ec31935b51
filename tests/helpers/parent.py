"""A process of its own that runs a stack, says so in one line of JSON, and waits.

python -m tests.helpers.parent STATE_FOLDER [USER_ID]
"""

import encodings.idna  # noqa: F401 (Python would load it at the first connection, when it may not any more)
import json
import os
import pwd
import sys
import time
from dataclasses import asdict
from pathlib import Path

from howl.embedded.stack import Stack

PATIENCE = 600  # seconds; the tests end it long before


def main(home: str, *uid: str) -> None:
    if uid:
        become(int(uid[0]))
    with Stack(Path(home)) as stack:
        pids = [stack.redis.pid, stack.nats.pid, stack.postgres.pid]
        print(json.dumps({"pids": pids, "urls": asdict(stack.urls)}), flush=True)  # noqa: T201
        time.sleep(PATIENCE)


def become(uid: int) -> None:
    """Be an ordinary user from here on; only now, because Python itself may lie in root's closed home."""
    os.setgroups([])
    os.setgid(pwd.getpwuid(uid).pw_gid)
    os.setuid(uid)


if __name__ == "__main__":
    main(*sys.argv[1:])
