"""Reading a JUnit file: what a suite's tests ended as. It is written by a program, so by anybody."""

import json
import math
from pathlib import Path
from typing import BinaryIO, TypedDict
from xml.parsers import expat

#: Bytes of a file that is read, and how many at once.
FILE_LIMIT = 64_000_000
CHUNK = 1 << 16
#: Characters kept of a test's name and of its message.
NAME_LIMIT, MESSAGE_LIMIT = 300, 500

#: What a test may hold that says how it ended, and under which heading it is counted.
ENDINGS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


class Counts(TypedDict):
    """How many tests there were, and how they ended; time is in seconds, of all of them together."""

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
    """The file is not there, is too large, or is no XML that is read here; its text is a sentence."""


def read(path: Path, room: int) -> tuple[Counts, list[Failing], int]:
    """The counts, the failing tests as far as their JSON fits `room` bytes, and how many more there are.

    A file of any size takes little memory. Raises Unreadable.
    """
    if not path.is_file():  # nor a pipe, which nobody may ever write to
        raise Unreadable("No JUnit file was written.")
    if path.stat().st_size > FILE_LIMIT:
        raise Unreadable(f"The JUnit file has more than {FILE_LIMIT:,} bytes.")
    reader = Reader(room)
    try:
        with path.open("rb") as file:
            reader.read(file)
    except Unreadable:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two of encodings that it names
        raise Unreadable(f"The JUnit file is no XML that can be read: {error}.") from None
    return reader.counts, reader.failing, reader.left_out


class Reader:
    """Counts test cases as they come by; the totals that suites state of themselves are not trusted."""

    def __init__(self, room: int) -> None:
        self.counts: Counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "time": 0.0}
        self.failing: list[Failing] = []
        self.left_out = 0
        self._room = room
        self._name = ""
        #: Whether it is still open how the test at hand ended: a second word on that is not counted.
        self._is_open = False
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = _refuse
        self._parser.StartElementHandler = self._begin

    def read(self, file: BinaryIO) -> None:
        """Raises Unreadable, or expat's error."""
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
    """A document type declares entities, of which a few lines can make gigabytes; the parser stops here."""
    raise Unreadable("The JUnit file declares a document type, which is not read.")


def _seconds(text: str) -> float:
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0
