"""What tests lean on."""

from typing import Any

import pytest

from tests.helpers.support import optional_program


def test_a_program_that_is_there_is_found() -> None:
    assert optional_program("sh").endswith("/sh")


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("true", pytest.fail)], ids=["here", "in CI"])
def test_a_test_whose_program_is_missing_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: Any
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match="no-such-program is"):
        optional_program("no-such-program")
