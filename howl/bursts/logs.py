"""The logs of bursts on this machine: those of the newest are kept."""

import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)

#: Bursts whose logs are kept, and bytes of them all.
KEPT, KEPT_BYTES = 50, 256 << 20
#: A burst's folder, with a log of each worker, or its keeper's log.
NAME = re.compile(r"([0-9a-f]{32})(\.log)?")


def tidy(folder: Path, running: Collection[str]) -> None:
    """Remove the oldest bursts' logs, beyond so many or so many bytes; never the newest's, nor those of `running`."""
    total = 0
    for number, (burst_id, entries) in enumerate(_newest_first(folder)):
        total += sum(map(_size, entries))
        if number and (number >= KEPT or total > KEPT_BYTES) and burst_id not in running:
            _remove(entries)


def _newest_first(folder: Path) -> list[tuple[str, list[Path]]]:
    """What there is of each burst; what is none of HOWL's is left alone."""
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
