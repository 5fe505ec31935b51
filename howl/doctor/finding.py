"""What a check found, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is: only a failure keeps HOWL from its work."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failed"


@dataclass(frozen=True)
class Answer:
    """One check's: what is so, and what to do about it where something is to be done."""

    verdict: Verdict
    said: str
    advice: str = ""


@dataclass(frozen=True)
class Finding(Answer):
    """An answer, and to which question: of a server, or of this machine (`here`)."""

    server: str = "here"
    check: str = ""


def well(said: str) -> Answer:
    return Answer(Verdict.OK, said)


def beware(said: str, advice: str) -> Answer:
    return Answer(Verdict.WARNING, said, advice)


def wrong(said: str, advice: str) -> Answer:
    return Answer(Verdict.FAILURE, said, advice)
