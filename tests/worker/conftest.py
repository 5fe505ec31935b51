"""One server and one worker for all tests of a module that look at how tasks end: starting them takes longest."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from howl.embedded.stack import Stack
from tests.helpers.crew import Crew

_numbers = count(1)


@pytest.fixture(scope="module")
def enlist(stack: Stack) -> Iterator[Callable[[str], Crew]]:
    """Start a server and a worker with the given pool, in a namespace of their own."""
    crews: list[Crew] = []

    def _enlist(pool: str) -> Crew:
        folder = Path(tempfile.mkdtemp(prefix="crew-", dir=stack.home))
        crews.append(Crew(stack, f"crew{next(_numbers)}", pool, folder))
        crews[-1].start()
        return crews[-1]

    yield _enlist
    for crew in crews:
        crew.end()
