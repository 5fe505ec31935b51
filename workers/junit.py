"""A reader of JUnit files, the results of a test suite; a file is written by any program, and so not trusted."""

import json
import math
from pathlib import Path
from typing import BinaryIO, TypedDict
from xml.parsers import expat

#: Most bytes of a file that is read, and bytes read at once.
FILE_LIMIT = 64_000_000
CHUNK = 1 << 16
#: Most characters kept of a test's name and of its message.
NAME_LIMIT, MESSAGE_LIMIT = 300, 500

#: Elements in a test case that say how it ended, and the count that each adds to.
ENDINGS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


class Counts(TypedDict):
    """Counts of tests by how they ended; time is in seconds, summed over all tests."""

    tests: int
    failures: int
    errors: int
    skipped: int
    time: float


class Failing(TypedDict):
    """A test that failed or could not be run."""

    name: str
    message: str


class Unreadable(ValueError):
    """The file is missing, too large, or XML that is not accepted here; the message is a sentence."""


def read(path: Path, room: int) -> tuple[Counts, list[Failing], int]:
    """Return the counts, the failing tests whose JSON fits `room` bytes, and the number of those left out.

    A file of any size takes little memory. Raises Unreadable.
    """
    if not path.is_file():  # a pipe is refused too: nobody may ever write to it
        raise Unreadable("No JUnit file was written.")
    if path.stat().st_size > FILE_LIMIT:
        raise Unreadable(f"The JUnit file has more than {FILE_LIMIT:,} bytes.")
    reader = Reader(room)
    try:
        with path.open("rb") as file:
            reader.read(file)
    except Unreadable:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two from encodings that the file names
        raise Unreadable(f"The JUnit file is no XML that can be read: {error}.") from None
    return reader.counts, reader.failing, reader.left_out


class Reader:
    """A counter of test cases as they are parsed; the totals that suites state themselves are not trusted."""

    def __init__(self, room: int) -> None:
        self.counts: Counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "time": 0.0}
        self.failing: list[Failing] = []
        self.left_out = 0
        self._room = room
        self._name = ""
        #: Whether the current test has no ending yet: a second ending is not counted.
        self._is_open = False
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = _refuse
        self._parser.StartElementHandler = self._begin

    def read(self, file: BinaryIO) -> None:
        """Parse a file; raises Unreadable, or expat's error."""
        while chunk := file.read(CHUNK):
            self._parser.Parse(chunk)
        self._parser.Parse(b"", True)
        self.counts["time"] = round(self.counts["time"], 3)

    def _begin(self, element: str, attributes: dict[str, str]) -> None:
        if element == "testcase":
            self.counts["tests"] += 1
            self.counts["time"] += _seconds(attributes.get("time", ""))
            self._name = "::".join(filter(None, (attributes.get("classname"), attributes.get("name"))))
            self._is_open = True
        elif element in ENDINGS and self._is_open:
            self._is_open = False
            self.counts[ENDINGS[element]] += 1  # type: ignore[literal-required]  # they are all counts
            if element != "skipped":
                self._keep(attributes.get("message") or attributes.get("type") or element)

    def _keep(self, message: str) -> None:
        failing: Failing = {"name": self._name[:NAME_LIMIT], "message": message[:MESSAGE_LIMIT]}
        self._room -= len(json.dumps(failing))
        if self._room >= 0:
            self.failing.append(failing)
        else:
            self.left_out += 1


def _refuse(*_: object) -> None:
    """Stop the parser at a document type: it declares entities, a few lines of which can expand to gigabytes."""
    raise Unreadable("The JUnit file declares a document type, which is not read.")


def _seconds(text: str) -> float:
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0
