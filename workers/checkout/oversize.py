"""Reduction of a diff that is too large: the largest changed files are left out, as few as possible."""

import re
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Most changed files that are read, and most bytes of a line about one; longer lines may be incomplete (output.py).
MOST, LONGEST = 50_000, 7_000
#: A line of `git diff --raw`: the old and new state of a file (mode and object), and its path, quoted if it is unusual.
LINE = re.compile(rb':(\d{6}) \d{6} (\w+) (\w+) [A-Z]\t([ !#-~][ -~]*|"[ -~]+")')


class Git(Protocol):
    """A function that runs git on the repository with the changes; raises CheckoutFailed."""

    def __call__(self, *arguments: str, data: str = "", tell: Callable[[bytes], None] | None = None) -> object: ...


@dataclass
class Change:
    """A changed file: the line that restores it in git's index, its path as git quotes it, and its objects."""

    before: str
    path: str
    objects: tuple[str, str]
    #: Bytes of its old and new content together.
    size: int = 0

    @property
    def name(self) -> str:
        """The unquoted path."""
        if not self.path.startswith('"'):
            return self.path
        return self.path[1:-1].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "replace")


def leave_out(git: Git, index: Path, commit: str, write: Callable[[], bool]) -> list[str]:
    """Leave files out until `write`, which writes the diff of an index, says it fits; return them, largest first.

    An empty list means that no part of the diff fits. Raises CheckoutFailed.
    """
    largest = _largest(git, commit)
    whole = index.with_name("index.whole")
    shutil.copyfile(index, whole)

    def fits_without(count: int) -> bool:
        shutil.copyfile(whole, index)
        git("update-index", "--index-info", data="".join(change.before for change in largest[:count]))
        return write()

    counts = range(1, len(largest))
    found = bisect_left(counts, True, key=fits_without)
    if found == len(counts) or not fits_without(counts[found]):  # the last one tried may have been another
        return []
    return [change.name for change in largest[: counts[found]]]


def _largest(git: Git, commit: str) -> list[Change]:
    """Return the changed files, largest first."""
    changes: list[Change] = []

    def add(lines: bytes) -> None:
        changes.extend(_read(lines.splitlines()[: MOST - len(changes)]))

    # Paths that are not ASCII are quoted too, so that git reads back exactly what it wrote.
    git("-c", "core.quotePath=true", "diff", "--cached", "--raw", "--no-abbrev", "--no-renames", commit, tell=add)

    def measure(lines: bytes) -> None:
        for line in lines.split(b"\n"):
            size, _, number = line.partition(b" ")
            if size.isdigit() and number.isdigit():
                changes[int(number)].size += int(size)

    asked = "".join(f"{each} {number}\n" for number, change in enumerate(changes) for each in change.objects)
    git("cat-file", "--batch-check=%(objectsize) %(rest)", data=asked, tell=measure)
    return sorted(changes, key=lambda change: change.size, reverse=True)


def _read(lines: Iterable[bytes]) -> Iterable[Change]:
    for line in lines:
        if len(line) <= LONGEST and (found := LINE.fullmatch(line)):
            mode, old, new, path = (part.decode() for part in found.groups())
            yield Change(f"{mode} {old}\t{path}\n", path, (old, new))
