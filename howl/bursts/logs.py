"""Retention of the logs of bursts on this machine: those of the newest are kept."""

import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)

#: Most bursts whose logs are kept, and most bytes of all logs.
KEPT, KEPT_BYTES = 50, 256 << 20
#: A burst's folder, with a log of each worker, or the log of the command that stays with its workers.
NAME = re.compile(r"([0-9a-f]{32})(\.log)?")


def tidy(folder: Path, running: Collection[str]) -> None:
    """Remove the oldest bursts' logs beyond KEPT or KEPT_BYTES; never the newest burst's, nor those of `running`."""
    total = 0
    for number, (burst_id, entries) in enumerate(_newest_first(folder)):
        total += sum(map(_size, entries))
        if number and (number >= KEPT or total > KEPT_BYTES) and burst_id not in running:
            _remove(entries)


def _newest_first(folder: Path) -> list[tuple[str, list[Path]]]:
    """Return each burst's files and folder, newest burst first; leave alone what is not HOWL's."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for entry in folder.iterdir():
        if match := NAME.fullmatch(entry.name):
            found[match[1]].append(entry)
    return sorted(found.items(), key=lambda item: max(map(_changed, item[1])), reverse=True)


def _changed(entry: Path) -> float:
    return entry.lstat().st_mtime


def _size(entry: Path) -> int:
    files = entry.iterdir() if entry.is_dir() and not entry.is_symlink() else [entry]
    return sum(file.lstat().st_size for file in files)


def _remove(entries: list[Path]) -> None:
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    logger.debug("Removed old logs: %s.", ", ".join(entry.name for entry in entries))
