"""Lines as they may be shown: split, clipped, cleaned, so many at a time."""

import re
from collections.abc import Iterator

#: Characters of a line, and bytes of the lines in one message.
LINE = 2_000
BATCH = 65_536

#: What a terminal obeys and nobody reads: colours, titles, movements.
COMMANDS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
#: Control characters but the tab, ends of lines, what turns the direction of text, halves of characters: some cannot be
#: stored, none shown.
UNSHOWABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def split(text: str, most: int) -> tuple[list[str], int]:
    """The newest lines of a text, clipped, `most` of them; and how many more it has."""
    if len(text) <= LINE and "\n" not in text and "\r" not in text:
        return [text], 0
    text = text.replace("\r\n", "\n").removesuffix("\n")
    left_out, *lines = f"\n{text}".rsplit("\n", most)
    return [clip(_overwritten(line)) for line in lines], left_out.count("\n")


def _overwritten(line: str) -> str:
    """A carriage return begins the line again, as progress bars do: what was written last remains."""
    return line.rstrip("\r").rpartition("\r")[2]


def clip(text: str, most: int = LINE) -> str:
    """So many characters, the last one an ellipsis if there were more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def clean(text: str) -> str:
    """Without what a terminal would obey; U+FFFD for what else cannot be shown."""
    if text.isprintable():
        return text
    return UNSHOWABLE.sub("\ufffd", COMMANDS.sub("", text))


def newest(lines: list[str], room: float) -> tuple[list[str], int]:
    """The last lines that fit into so many bytes, cleaned, one at least; and their size in bytes."""
    kept: list[str] = []
    size = 0
    for line in map(clean, reversed(lines)):
        if kept and size + bytes_of(line) > room:
            break
        kept.append(line)
        size += bytes_of(line)
    return kept[::-1], size


def batches(lines: list[str]) -> Iterator[list[str]]:
    """The same lines in order, at most BATCH bytes together."""
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
    """As UTF-8, with its line end."""
    return 1 + (len(line) if line.isascii() else len(line.encode()))
