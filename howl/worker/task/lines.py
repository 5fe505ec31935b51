"""Lines of a log, made fit to be shown: split, clipped, cleaned, so many at a time."""

import re
from collections.abc import Iterator

#: Most characters of a line, and most bytes of the lines in one message.
LINE = 2_000
BATCH = 65_536

#: Commands to a terminal, which nobody reads: colours, titles, movements of the cursor.
COMMANDS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
#: Control characters except the tab, line ends, marks that change the direction of text, surrogates: some cannot be
#: stored, none can be shown.
UNSHOWABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def split(text: str, most: int) -> tuple[list[str], int]:
    """Return the newest lines of a text, clipped, at most `most` of them; and how many more it has."""
    if len(text) <= LINE and "\n" not in text and "\r" not in text:
        return [text], 0
    text = text.replace("\r\n", "\n").removesuffix("\n")
    left_out, *lines = f"\n{text}".rsplit("\n", most)
    return [clip(_overwritten(line)) for line in lines], left_out.count("\n")


def _overwritten(line: str) -> str:
    """Return what was written last: a carriage return starts the line over, as progress bars do."""
    return line.rstrip("\r").rpartition("\r")[2]


def clip(text: str, most: int = LINE) -> str:
    """Return at most `most` characters, the last one an ellipsis if there were more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def clean(text: str) -> str:
    """Remove what a terminal would obey; put U+FFFD for what else cannot be shown."""
    if text.isprintable():
        return text
    return UNSHOWABLE.sub("\ufffd", COMMANDS.sub("", text))


def newest(lines: list[str], room: float) -> tuple[list[str], int]:
    """Return the last lines that fit into `room` bytes, cleaned, one at least; and their size in bytes."""
    kept: list[str] = []
    size = 0
    for line in map(clean, reversed(lines)):
        if kept and size + bytes_of(line) > room:
            break
        kept.append(line)
        size += bytes_of(line)
    return kept[::-1], size


def batches(lines: list[str]) -> Iterator[list[str]]:
    """Yield the same lines in order, at most BATCH bytes together."""
    batch: list[str] = []
    size = 0
    for line in lines:
        if batch and size + bytes_of(line) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += bytes_of(line)
    if batch:
        yield batch


def bytes_of(line: str) -> int:
    """Return the size of a line in bytes, as UTF-8, with its line end."""
    return 1 + (len(line) if line.isascii() else len(line.encode()))
