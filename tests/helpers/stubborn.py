"""A stand-in for ill-behaved programs: it and its child ignore SIGTERM, its daemon bears no trace of its origin.

`stubborn.py NOTES [leave]` writes the three pids to NOTES, then waits, or with `leave` ends and leaves the others.
"""

import os
import signal
import sys
import time
from pathlib import Path

PATIENCE = 100


def main(notes: Path, leave: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child, daemon = start(wait), start_daemon()
    part = notes.with_suffix(".part")
    part.write_text(f"{os.getpid()}\n{child}\n{daemon}\n")
    part.rename(notes)
    print("three processes are running", flush=True)  # noqa: T201 - this is a program
    if not leave:
        wait()


def start(task) -> int:
    pid = os.fork()
    if pid == 0:
        task()
        os._exit(0)
    return pid


def start_daemon() -> int:
    """Fork twice into a session of its own, with an empty environment, and closed standard streams."""
    reading, writing = os.pipe()

    def between() -> None:
        os.setsid()
        pid = start(become_sleep)
        os.write(writing, str(pid).encode())

    os.waitpid(start(between), 0)
    return int(os.read(reading, 100))


def become_sleep() -> None:
    os.closerange(0, 3)
    os.execve("/bin/sleep", ["sleep", str(PATIENCE)], {})  # noqa: S606 - a list, no shell


def wait() -> None:
    time.sleep(PATIENCE)


main(Path(sys.argv[1]), "leave" in sys.argv)
