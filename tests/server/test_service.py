"""The server's parts side by side: what ends one ends no other, and is told to who asks."""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import httpx
import psycopg
import pytest
from nats.errors import Error as NatsError
from sqlalchemy.exc import ProgrammingError

from howl.config import Settings
from howl.doctor.examine import run as examine
from howl.doctor.failing_parts import AILING, LASTS
from howl.doctor.finding import Verdict
from howl.server import health, supervision
from howl.server.failing_parts import Board
from howl.server.supervision import Supervised, end

#: What may end a part, of every library in the house, and of our own making.
SURPRISES: dict[str, Callable[[], BaseException]] = {
    "httpx": lambda: httpx.InvalidURL("Invalid port: ':'"),
    "sqlalchemy": lambda: ProgrammingError("SELECT 1", {}, Exception('prepared statement "_pg3_0" already exists')),
    "psycopg": lambda: psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction"),
    "a database's odd settings": lambda: NotImplementedError("can't parse timestamptz with DateStyle 'German'"),
    "nats": lambda: NatsError("surprise"),
    "our own": lambda: KeyError("task"),
    "a missing library": lambda: ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
    "memory": MemoryError,
    "recursion": RecursionError,
    "somebody's exit": lambda: SystemExit(3),
    "a cancellation of a library's own": asyncio.CancelledError,
    "several at once": lambda: ExceptionGroup("several", [ValueError("one")]),
}


def test_a_part_ends_although_a_library_of_its_kept_the_first_word_to_itself():
    async def deaf_once() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def serve() -> bool:
        part = asyncio.create_task(deaf_once())
        await asyncio.sleep(0)
        await asyncio.wait_for(end([part]), 10)
        return part.cancelled()

    assert asyncio.run(serve())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a test's length."""
    monkeypatch.setattr(supervision, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(supervision, "LAST_WAIT", 0.02)


def serve_until(settings: Settings, stop: asyncio.Event, seen: Callable[[], Any], **parts: Any) -> Any:
    """Run parts as the server does until `stop` is set; returns what `seen` says just before they are told to end."""

    async def serve() -> Any:
        board = Board.of(settings)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(Supervised(name, part, board).run()) for name, part in parts.items()]
            await asyncio.wait_for(stop.wait(), 30)
            told = await asyncio.to_thread(seen)
            await end(running)
        return told

    return asyncio.run(serve())


@pytest.mark.servers
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("surprise", SURPRISES)
def test_whatever_ends_one_part_it_starts_again_and_the_others_do_not_notice(
    surprise: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    lives, stop = {"good": 0, "bad": 0}, asyncio.Event()

    async def bad() -> None:
        lives["bad"] += 1
        if lives["bad"] == 5:
            stop.set()
        raise SURPRISES[surprise]()

    async def good() -> None:
        lives["good"] += 1
        await asyncio.sleep(3600)

    with caplog.at_level(logging.WARNING):
        told = serve_until(settings, stop, lambda: health.ailing_parts(settings), good=good, bad=bad)
    assert lives["good"] == 1
    assert [each.part for each in told] == ["bad"]
    said = [record for record in caplog.records if "The bad stopped" in record.getMessage()]
    assert len(said) == 1, "it is said once why, however often"
    assert health.ailing_parts(settings) == [], "a server that was told to stop ails no more"


@pytest.mark.servers
@pytest.mark.usefixtures("hasty")
def test_a_part_that_works_again_is_shown_as_well(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "WELL", 0.2)
    lives, stop = [0], asyncio.Event()

    async def recovers() -> None:
        lives[0] += 1
        if lives[0] < 3:
            raise ValueError("not yet")
        await asyncio.sleep(1)
        stop.set()
        await asyncio.sleep(3600)

    with caplog.at_level(logging.INFO):
        assert serve_until(settings, stop, lambda: health.ailing_parts(settings), part=recovers) == []
    assert "The part works again." in caplog.text


@pytest.mark.servers
@pytest.mark.parametrize(("part", "verdict"), [("starter", Verdict.WARNING), ("recorder", Verdict.FAILURE)])
def test_the_doctor_and_the_health_check_name_the_part_that_ails(
    part: str, verdict: Verdict, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board.of(settings)
    board.tell(part, "InvalidURL: Invalid port: ':'", 7)
    found = next(each for each in examine(settings) if each.check == "parts")
    assert found.verdict is verdict
    assert found.said == f"the {part} ended 7 times lately: InvalidURL: Invalid port: ':'"
    monkeypatch.setattr(health, "load_settings", lambda: settings)
    monkeypatch.setattr(health, "recorder_silence", lambda _: 0.0)
    with pytest.raises(SystemExit) if verdict is Verdict.FAILURE else nullcontext():
        health.main()
    assert f"Ailing: the {part} ended 7 times lately" in capsys.readouterr().out
    board.forget(part)
    assert "parts" not in {each.check for each in examine(settings)}


@pytest.mark.servers
def test_what_a_killed_server_said_is_forgotten(settings: Settings) -> None:
    board = Board.of(settings)
    board.tell("recorder", "gone", 1)
    (name,) = board.client.hkeys(board.key)
    told = json.loads(board.client.hget(board.key, name))
    board.client.hset(board.key, name, json.dumps(told | {"at": told["at"] - LASTS}))
    assert health.ailing_parts(settings) == []
    assert board.key == settings.key(AILING)


def test_a_redis_that_is_away_keeps_no_part_from_starting_again(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    Board.of(away).tell("recorder", "whatever", 1)
    Board.of(away).forget("recorder")
    assert sys.exc_info() == (None, None, None)
