"""A command that looks for secrets in every process it may look into: prints where it found which.

Its argument is the process whose tree is searched, or 0: all there are. Its standard input are the secrets, each spelt
backwards: its own memory, and that of whoever gave it the input, would otherwise hold them. It prints their numbers,
and how many processes' environments it could read.
"""

import os
import re
import sys
from pathlib import Path

#: Of a single mapping, bytes that are read: a secret lies among the first of a heap or a stack.
MOST = 64 << 20


def main() -> None:
    secrets = [line[::-1].encode() for line in sys.stdin.read().split()]
    read = 0
    for folder in Path("/proc").glob("[1-9]*"):
        if int(sys.argv[1]) not in ancestors(folder):
            continue
        read += environ(folder) is not None
        if int(folder.name) == os.getpid():
            continue
        for place, content in (("environ", environ(folder)), ("mem", memory(folder))):
            for number, secret in enumerate(secrets):
                if content and secret in content:
                    print("found", number, place, folder.name, name(folder), flush=True)  # noqa: T201  # its answer
    print("read", read)  # noqa: T201  # likewise


def ancestors(folder: Path) -> list[int]:
    """The process itself, its parent and so on, down to 0."""
    found = [int(folder.name)]
    while found[-1]:
        try:
            stat = (folder.parent / str(found[-1]) / "stat").read_text("utf-8", "replace")
        except OSError:  # gone meanwhile
            return found
        found.append(int(stat.rpartition(")")[2].split()[1]))
    return found


def environ(folder: Path) -> bytes | None:
    try:
        return (folder / "environ").read_bytes()
    except OSError:
        return None


def memory(folder: Path) -> bytes | None:
    """All that is its own and can be written to, which is where what a program was told lies."""
    found = []
    try:
        with (folder / "mem").open("rb", buffering=0) as memory:
            for line in (folder / "maps").read_text().splitlines():
                mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p", line)
                if mapping:
                    begin, end = (int(each, 16) for each in mapping.groups())
                    memory.seek(begin)
                    found.append(memory.read(min(end - begin, MOST)))
    except (OSError, ValueError):  # not allowed, gone meanwhile, or no memory of a user's
        return None if not found else b"".join(found)
    return b"".join(found)


def name(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80].strip()
    except OSError:
        return "?"


if __name__ == "__main__":
    main()
