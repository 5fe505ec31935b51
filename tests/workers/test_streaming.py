"""What a program prints is the task's log while it runs; called directly, as a run of this process."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from howl.errors import AgentFailed, CommandTimedOut
from howl.worker.task import context, reporter
from howl.worker.task.lines import split
from workers import agent
from workers.command import run
from workers.process.output import LINE_LIMIT, Lines


class Shown:
    """The events of a run."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, document: bytes) -> None:
        self.events.append(json.loads(document))

    @property
    def lines(self) -> list[str]:
        reporter.flush()
        return [line for event in self.events for line in event["lines"]]


@pytest.fixture
def shown() -> Iterator[Shown]:
    """What is shown of a run that goes on in this test."""
    made = Shown()
    reporter.begin(made.add, "here", "celery@test")
    yield made
    reporter.end()


def python(program: str) -> list[str]:
    return [sys.executable, "-u", "-c", program]


def test_lines_of_both_streams_are_shown_in_the_order_in_which_they_are_read(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    log, read = context.log, tmp_path / "read"

    def note(lines: bytes) -> None:
        log(lines)
        with read.open("a") as file:
            file.write(".")

    monkeypatch.setattr(context, "log", note)
    program = f"""
import os, time
for number in range(3):
    for stream in (1, 2):
        os.write(stream, b"%d to %d\\n" % (number, stream))
        while not os.path.exists({str(read)!r}) or os.path.getsize({str(read)!r}) < 2 * number + stream:
            time.sleep(0.02)
"""
    result = run(python(program), timeout=60)
    assert shown.lines == [f"{number} to {stream}" for number in range(3) for stream in (1, 2)]
    assert result["stdout"] == "0 to 1\n1 to 1\n2 to 1\n"


def test_a_line_is_shown_while_the_program_runs(shown: Shown, tmp_path: Path):
    go_on = tmp_path / "go on"
    reporter.end()
    reporter.begin(lambda document: (shown.add(document), go_on.touch()), "here", "celery@test")
    program = f"""
import os, time
print("first")
deadline = time.monotonic() + 30
while not os.path.exists({str(go_on)!r}) and time.monotonic() < deadline:
    time.sleep(0.02)
print("seen" if time.monotonic() < deadline else "not seen")
"""
    run(python(program))
    assert shown.lines == ["first", "seen"]


def test_a_line_that_is_not_ended_is_shown_at_the_end(shown: Shown):
    run(python("import sys; sys.stdout.write('out, '); sys.stdout.write('cut'); sys.stderr.write('err')"))
    assert sorted(shown.lines) == ["err", "out, cut"]


def test_a_line_that_a_time_out_cuts_short_is_shown(shown: Shown, time_out, tmp_path: Path):
    ready = tmp_path / "ready"
    program = f"import os, time; os.write(1, b'working on it'); open({str(ready)!r}, 'w'); time.sleep(60)"
    with pytest.raises(CommandTimedOut):
        run(python(program), timeout=time_out(ready.exists))
    assert shown.lines == ["working on it"]


def test_a_progress_bar_is_shown_now_and_then_and_as_it_was_last(shown: Shown):
    program = """
import sys, time
for percent in range(0, 101, 10):
    sys.stdout.write(f"\\r{percent} %")
    time.sleep(0.05)
print("\\r\\ndone")
"""
    run(python(program))
    assert set(shown.lines) <= {f"{percent} %" for percent in range(0, 101, 10)} | {"done"}
    assert shown.lines[-2:] == ["100 %", "done"]


def test_what_is_no_utf_8_is_replaced(shown: Shown):
    run(python("import os; os.write(1, b'a\\xff\\xfeb\\0c\\n')"))
    assert shown.lines == ["a\ufffd\ufffdb\ufffdc"]


def test_a_program_that_prints_100_000_lines_is_not_held_up_and_the_newest_are_shown(shown: Shown):
    began = time.monotonic()
    program = "print('\\n'.join(f'line {number} of a hundred thousand' for number in range(100_000)))"
    result = run(python(program), timeout=60)  # at the rate at which lines are shown, it would take three minutes
    assert result["stdout_truncated"]
    assert shown.lines[-1] == "line 99999 of a hundred thousand"
    took = time.monotonic() - began
    assert len(shown.lines) + sum(event["dropped"] for event in shown.events) == 100_000
    assert sum(map(len, shown.lines)) <= reporter.BURST + reporter.RATE * took + reporter.LAST_WORDS


def test_an_agents_lines_are_shown_though_it_fails(shown: Shown, owner_says: Callable[..., None], tmp_path: Path):
    script = tmp_path / "agent.py"
    script.write_text("import sys\nprint('thinking')\nsys.exit('no idea')\n")
    owner_says(HOWL_AGENT_COMMAND=f"{sys.executable} -u {script} {{prompt}}")
    with pytest.raises(AgentFailed):
        agent.run("fix it")
    assert sorted(shown.lines) == ["no idea", "thinking"]


def test_lines_are_the_same_however_the_stream_is_cut():
    stream = b"one\r\n\r\ntwo\nthr\xc3\xa9e\n\n" + b"x" * 500 + b"\r\nend"
    for size in range(1, 60):
        told: list[bytes] = []
        lines = Lines(told.append)
        for start in range(0, len(stream), size):
            lines.add(stream[start : start + size])
        lines.end()
        shown = [line for block in told for line in split(block.decode(), 100)[0]]
        assert shown == ["one", "", "two", "thrée", "", "x" * 500, "end"]


def test_a_line_without_an_end_takes_no_more_memory_than_may_be_shown():
    told: list[bytes] = []
    lines = Lines(told.append)
    for _ in range(1_000):
        lines.add(b"x" * 1_000)
        assert len(lines._begun) <= LINE_LIMIT
    lines.add(b"\nnext\n")
    lines.end()
    assert b"".join(told) == b"x" * LINE_LIMIT + b"\nnext\n"


def test_outside_a_run_nothing_is_shown_and_the_program_runs_the_same():
    assert run(["echo", "well"])["stdout"] == "well\n"
