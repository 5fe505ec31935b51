"""What is left out of a diff that would be too large: the largest of the changed files, and as few as possible."""

import re
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Changed files that are looked at, and bytes of a line about one; longer ones may have come in part (output.py).
MOST, LONGEST = 50_000, 7_000
#: A line of `git diff --raw`: how the file was and is (mode and object), and its path, in quotes if that is unusual.
LINE = re.compile(rb':(\d{6}) \d{6} (\w+) (\w+) [A-Z]\t([ !#-~][ -~]*|"[ -~]+")')


class Git(Protocol):
    """Runs git in the repository that knows of the changes; raises CheckoutFailed."""

    def __call__(self, *arguments: str, data: str = "", tell: Callable[[bytes], None] | None = None) -> object: ...


@dataclass
class Change:
    """A changed file: the line that makes it as it was in git's index, its path as git quotes it, its objects."""

    before: str
    path: str
    objects: tuple[str, str]
    #: Bytes that it had and has, together.
    size: int = 0

    @property
    def name(self) -> str:
        """The path as it is."""
        if not self.path.startswith('"'):
            return self.path
        return self.path[1:-1].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "replace")


def leave_out(git: Git, index: Path, commit: str, write: Callable[[], bool]) -> list[str]:
    """Have `write` succeed, which writes the diff of an index if it fits; paths of what is not in it, largest first.

    An empty list: nothing that fits would be left. Raises CheckoutFailed.
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
    if found == len(counts) or not fits_without(counts[found]):  # the last that was tried may have been another
        return []
    return [change.name for change in largest[: counts[found]]]


def _largest(git: Git, commit: str) -> list[Change]:
    """Changed files, the largest first."""
    changes: list[Change] = []

    def add(lines: bytes) -> None:
        changes.extend(_read(lines.splitlines()[: MOST - len(changes)]))

    # What is not ASCII is quoted too: so a path comes back as it went.
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
