"""Results of checks, and what to do about them."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The severity: only a failure keeps HOWL from working."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failed"


@dataclass(frozen=True)
class Answer:
    """A check's answer: what it found, and what to do about it, if anything."""

    verdict: Verdict
    said: str
    advice: str = ""


@dataclass(frozen=True)
class Finding(Answer):
    """An answer with its check, and the server that it is about, or this machine (`here`)."""

    server: str = "here"
    check: str = ""


def well(said: str) -> Answer:
    return Answer(Verdict.OK, said)


def beware(said: str, advice: str) -> Answer:
    return Answer(Verdict.WARNING, said, advice)


def wrong(said: str, advice: str) -> Answer:
    return Answer(Verdict.FAILURE, said, advice)
