"""The program that repeats attacks, each in its own process: `python -m benchmarks.hostile.loops SECONDS NAME ...`.

It takes the credential from HOWL_JOIN, prints `ready`, begins when it reads a line, and ends by printing the tally of
each attack as JSON. A process that does not end by itself is killed; its tally up to then counts.
"""

import json
import multiprocessing
import os
import re
import resource
import sys
import time
from ctypes import Structure, c_char, c_double, c_long
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis
from nats.errors import Error as NatsError

from benchmarks.hostile.attacks import find
from benchmarks.hostile.thief import Refused, Thief
from howl.config import load_settings

#: Seconds after the end of its time within which a pass must end by itself.
LATE = 3.0
#: Seconds of pause after a pass that failed, so that a refused attack does not spin.
PAUSE = 0.02
#: Redis's errors that say it is busy or full; redis-py prefixes them with the command of a pipeline that failed.
NO_ROOM = re.compile(r"(^|caused error: )(BUSY|OOM|MISCONF|LOADING)\b")


class _Count(Structure):
    """The counts of an attack, in memory that parent and child share."""

    _fields_ = (
        ("passes", c_long), ("refused", c_long), ("cut", c_long), ("busy", c_long),
        ("processor", c_double), ("answer", c_char * 160),
    )  # fmt: skip


@dataclass(frozen=True)
class Tally:
    """The tally of one attack."""

    #: Passes that went through, were refused, were cut off or not answered, and met a busy or full Redis.
    passes: int
    refused: int
    cut: int
    busy: int
    #: Seconds of processor time that the attacker itself used.
    processor: float
    #: The last error that it got.
    answer: str
    #: Whether its process failed by itself; being killed at the end of its time does not count.
    broken: bool = False

    @property
    def is_refused(self) -> bool:
        return self.refused > 0 and self.passes == self.busy == 0


def main(seconds: float, names: list[str]) -> dict[str, Tally]:
    """Run the attacks side by side, and return their tallies."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        return {}
    until = time.time() + seconds
    # Forked, so that their common imports are loaded once, before the clock starts.
    context: Any = multiprocessing.get_context("fork")
    counts = {f"{name}#{number}": context.Value(_Count, lock=False) for number, name in enumerate(names)}
    running = [
        context.Process(target=_loop, args=(name.partition("#")[0], until, count), daemon=True)
        for name, count in counts.items()
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(max(0.0, until + LATE - time.time()))
    return {name: _tally(count, process) for (name, count), process in zip(counts.items(), running, strict=True)}


def _tally(count: Any, process: BaseProcess) -> Tally:
    broken = process.exitcode not in (0, None)
    if process.exitcode is None:
        count.cut += 1  # the pass that did not return
        count.processor = _processor(process.pid)
        process.kill()
        process.join(LATE)
    words = count.answer.decode(errors="replace")
    return Tally(count.passes, count.refused, count.cut, count.busy, round(count.processor, 2), words, broken)


def _processor(pid: int | None) -> float:
    """Return the seconds of processor time of a process (proc(5), stat's fields utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _loop(name: str, until: float, count: Any) -> None:
    attack, thief = find(name), Thief(load_settings(), until)
    while not thief.is_over:
        kind, answer = _once(attack, thief)
        setattr(count, kind, getattr(count, kind) + 1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        count.processor = used.ru_utime + used.ru_stime
        if answer:
            count.answer = answer.encode()[:159]
        if kind != "passes":
            time.sleep(PAUSE)


def _once(attack: Any, thief: Thief) -> tuple[str, str]:
    """Run one pass, and return how it ended, with the error's text."""
    try:
        attack(thief)
    except Refused as error:
        return "refused", str(error)
    except redis.exceptions.ResponseError as error:
        full = isinstance(error, redis.exceptions.OutOfMemoryError) or NO_ROOM.search(str(error))
        return ("busy" if full else "refused"), str(error)
    except (redis.RedisError, NatsError, OSError) as error:
        thief.begin_anew()
        return "cut", repr(error)
    return "passes", ""


if __name__ == "__main__":
    print(json.dumps({name: asdict(tally) for name, tally in main(float(sys.argv[1]), sys.argv[2:]).items()}))
