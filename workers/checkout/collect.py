"""Collection of the files an agent left in `artifacts/` and of the diff of its changes, as the task's artifacts."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from howl.errors import ArtifactRefused, NotConfigured
from howl.worker.task import context
from howl.worker.task.artifacts import artifact
from workers.checkout.checkout import ARTIFACTS, DIFF, Changes, Checkout

#: Most files that are kept of one run, and most entries of folders that are read.
MOST_FILES, MOST_ENTRIES = 100, 10_000
#: Most refusals that are reported, and most characters of a name and of a reason.
TOLD, NAME, WHY = 20, 100, 300


class Refusal(TypedDict):
    """A file that was not kept, by its path below `artifacts/`, or in the repository if the diff leaves it out."""

    name: str
    why: str


class Left(TypedDict):
    """The remains of a run: files kept (name, media_type, size, sha256), files not kept, and changes to a checkout."""

    artifacts: list[dict[str, Any]]
    refused: list[Refusal]
    changes: Changes | None


#: By path, the identity of a file as long as nobody writes to it: inode, bytes, nanoseconds of its last change.
Files = dict[str, tuple[int, int, int]]


def brought(work: Path) -> Files:
    """Return the files in `artifacts/` before the agent starts, by path: a repository may bring some."""
    folder = work / ARTIFACTS
    if folder.is_symlink() or not folder.is_dir():
        return {}
    return {entry.path: _identity(entry) for entry in islice(_entries(folder), MOST_ENTRIES)}


def collect(work: Path, before: Files, checkout: Checkout | None, limit: int) -> Left:
    """Keep the files that are there now and were not `before`; `limit` is the most bytes of a diff.

    Files that cannot be kept because of what they are, are reported in `refused` and in the log. Raises ArtifactFailed
    if NATS does not accept a file, and CheckoutFailed.
    """
    kept = _Kept()
    changes = None
    if checkout is not None:
        diff = checkout.folder / DIFF
        changes, left_out = checkout.changes(diff, limit)
        for name, why in left_out.items():
            kept.refuse(name, why)
        if diff.exists():
            kept.keep(DIFF, diff, media_type="text/x-diff")
        elif changes["files_changed"]:
            kept.refuse(DIFF, f"it would be larger than {limit:,} bytes (HOWL_ARTIFACT_LIMIT)")
    _keep_all(work / ARTIFACTS, before, kept)
    return {"artifacts": kept.artifacts, "refused": kept.told(), "changes": changes}


class _Kept:
    """A record of the artifacts that were kept and the files that were refused."""

    def __init__(self) -> None:
        self.artifacts: list[dict[str, Any]] = []
        self.refusals = 0
        self._names: set[str] = set()
        self._refused: list[Refusal] = []

    def keep(self, name: str, path: Path, media_type: str | None = None) -> None:
        """Keep a file; an artifact's name has no folders, so `shots/a.png` becomes `shots-a.png`."""
        flat = name.replace("/", "-")
        if flat in self._names:
            self.refuse(name, f"another file is called {flat} already")
        elif len(self.artifacts) >= MOST_FILES:
            self.refuse(name, f"{MOST_FILES} files are kept already: pack them")
        else:
            self._keep(name, flat, path, media_type)

    def refuse(self, name: str, why: str) -> None:
        self.refusals += 1
        if len(self._refused) < TOLD:
            shown = os.fsencode(name).decode("utf-8", "replace")[:NAME]
            self._refused.append({"name": shown, "why": why[:WHY]})
            context.log(f"not kept: {shown}: {why[:WHY]}")

    def told(self) -> list[Refusal]:
        more = self.refusals - len(self._refused)
        return [*self._refused, *([Refusal(name="", why=f"and {more:,} more")] if more else [])]

    def _keep(self, name: str, flat: str, path: Path, media_type: str | None) -> None:
        try:
            self.artifacts.append(artifact(path, flat, media_type))
            self._names.add(flat)
        except (ArtifactRefused, NotConfigured) as error:
            self.refuse(name, error.message)


def _keep_all(folder: Path, before: Files, kept: _Kept) -> None:
    """Keep the files below a folder; links are not followed, because the repository may have brought them."""
    if folder.is_symlink():
        return kept.refuse(ARTIFACTS, "it is a link, and not followed")
    try:
        for number, entry in enumerate(_entries(folder) if folder.is_dir() else ()):
            name = os.path.relpath(entry.path, folder)
            if before.get(entry.path) == _identity(entry):
                continue
            if number >= MOST_ENTRIES:
                return kept.refuse(name, f"and what comes after it: only {MOST_ENTRIES:,} entries are looked at")
            if entry.is_symlink():
                kept.refuse(name, "it is a link, and not followed")
            elif not entry.is_dir():
                kept.keep(name, Path(entry.path))
    except OSError as error:
        kept.refuse(os.path.relpath(error.filename, folder), f"and what comes after it: {error.strerror}")
    return None


def _identity(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    about = entry.stat(follow_symlinks=False)
    return about.st_ino, about.st_size, about.st_mtime_ns


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all entries below a folder, at any depth; those of each folder by name, and no more than are read."""
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as found:
            entries = sorted(islice(found, MOST_ENTRIES + 1), key=lambda entry: entry.name)
        yield from entries
        folders += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
