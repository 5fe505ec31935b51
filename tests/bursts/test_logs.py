"""What is kept of the logs of bursts on this machine."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest

from howl.bursts import logs, records
from howl.config import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of five bursts, the first being the oldest: a folder of two kilobytes and a keeper's log each."""
    for number in range(5):
        made = tmp_path / burst(number)
        made.mkdir()
        (made / "local-1.log").write_bytes(b"x" * 2000)
        keeper = tmp_path / f"{burst(number)}.log"
        keeper.touch()
        for entry in (made, keeper):
            os.utime(entry, (1000 + number, 1000 + number))
    return tmp_path


def burst(number: int) -> str:
    return f"{number:032x}"


def kept_of(folder: Path, running: Collection[str] = ()) -> list[str]:
    logs.tidy(folder, running)
    return sorted(entry.name for entry in folder.iterdir())


def both(numbers: Iterable[int]) -> list[str]:
    return sorted(name for number in numbers for name in (burst(number), f"{burst(number)}.log"))


def test_the_newest_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT", 2)
    assert kept_of(folder) == both((3, 4))


def test_they_are_no_larger_together_than_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT_BYTES", 7000)
    assert kept_of(folder) == both((2, 3, 4))


def test_a_running_burst_and_the_newest_keep_theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT_BYTES", 1)
    assert kept_of(folder, {burst(1)}) == both((1, 4))


def test_what_is_none_of_howls_is_left_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT", 1)
    others = ["notes", f"{burst(0)}.txt"]
    for name in others:
        (folder / name).touch()
    assert kept_of(folder) == sorted([*both((4,)), *others])


def test_bursts_that_have_not_ended_are_running(settings: Settings) -> None:
    for number, origin in enumerate(("local", "local", "github-actions")):
        records.begin(
            settings.database(), burst_id=burst(number), origin=origin, num_workers=1, runtime_minutes=1.0,
            minutes_planned=1.0,
        )  # fmt: skip
    records.end(settings.database(), burst(0), 1.0)
    assert records.running_here(settings.database(), since=60) == {burst(1)}
