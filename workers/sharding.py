"""One command as many shards: their arguments, their reports, and the summary of all."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from celery.exceptions import SoftTimeLimitExceeded

from howl.errors import HowlError, InvalidRequest
from howl.outcomes import PART_STATUS
from workers import junit
from workers.checkout.permissions import settings
from workers.junit import Counts, Failing, Unreadable
from workers.process import process
from workers.process.output import last_lines
from workers.process.spec import check_timeout, order

#: Most shards of one command, and most bytes of the arguments of all of them together.
MOST, SENT = 256, 16 << 20
PLACE = re.compile(r"\{(shard|shards|junit)\}")
#: Most of an outcome, as a fraction, that the texts of all shards together may take.
SHARE = 1 / 4
LINES = 20


class Report(TypedDict):
    """The report of one shard: without an exit status, `error` says why; duration is in seconds."""

    shard: int
    worker: str | None
    exit_status: int | None
    duration: float | None
    error: str | None
    last_lines: str
    tests: Counts | None
    failing: list[Failing]
    failing_left_out: int


class FailingTest(Failing):
    """A failing test, with the shard that it failed in."""

    shard: int


class Trouble(TypedDict):
    """A shard that did not succeed."""

    shard: int
    worker: str | None
    exit_status: int | None
    error: str | None
    last_lines: str


class Slowest(TypedDict):
    """The shard that took longest; duration is in seconds."""

    shard: int
    duration: float


class Summary(TypedDict):
    """The summary of all shards; duration is in seconds, summed over all shards."""

    shards: int
    succeeded: int
    failed: list[Trouble]
    exit_statuses: list[int | None]
    tests: Counts | None
    failing: list[FailingTest]
    failing_left_out: int
    slowest: Slowest | None
    duration: float


def check(
    argv: list[str], shard: int, shards: int, cwd: str | None, env: Mapping[str, str] | None, timeout: float | None
) -> None:
    """Raise InvalidRequest unless this is a command that can be split into these shards."""
    check_timeout(timeout)
    order(argv, env, cwd)
    if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards <= MOST:
        raise InvalidRequest(f"shards must be a whole number from 1 to {MOST}.")
    if not isinstance(shard, int) or isinstance(shard, bool) or not 1 <= shard <= shards:
        raise InvalidRequest(f"shard must be a whole number from 1 to {shards}.")
    if len(json.dumps([argv, env])) * shards > SENT:
        raise InvalidRequest(f"What {shards} shards are told takes more than {SENT:,} bytes: pass a reference.")
    if shards > 1 and not any("{shard}" in text for text in (*argv, *(env or {}).values())):
        raise InvalidRequest(f"Write {{shard}} where it belongs in argv or env: all {shards} shards would do the same.")


def run(
    argv: list[str], shard: int, shards: int, cwd: str | None, env: Mapping[str, str] | None, timeout: float | None
) -> Report:
    """Run one shard; a failure of the program is a report, not an error, so that no other shard's report is lost."""
    report = _blank(shard)
    with tempfile.TemporaryDirectory(prefix="howl-shard-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "junit.xml")
        values = {"shard": str(shard), "shards": str(shards), "junit": str(path)}
        filled = {name: _fill(text, values) for name, text in (env or {}).items()}
        room = int(settings().outcome_limit * SHARE) // shards // 2
        try:
            ended = process.run([_fill(text, values) for text in argv], env=filled, cwd=cwd, timeout=timeout)
            report |= {"exit_status": ended["exit_status"], "duration": ended["duration"]}
            if ended["exit_status"] != 0:
                report["last_lines"] = _end_of(last_lines(ended["stdout"], ended["stderr"], lines=LINES), room)
        except (HowlError, SoftTimeLimitExceeded) as error:
            report["error"] = _beginning_of(f"{type(error).__name__}: {error}", room)
        if any("{junit}" in text for text in (*argv, *(env or {}).values())):
            _read_tests(report, path, room)
    return report


def summary(reports: list[Any]) -> Summary:
    """Summarize the shards, in their order, from their reports or from what the server reports about the others."""
    told = [_told(shard, report) for shard, report in enumerate(reports, 1)]
    failed = [report for report in told if not _is_well(report)]
    timed = [report for report in told if report["duration"] is not None]
    slowest = max(timed, key=_duration, default=None)
    return {
        "shards": len(told),
        "succeeded": len(told) - len(failed),
        "failed": [_trouble(report) for report in failed],
        "exit_statuses": [report["exit_status"] for report in told],
        "tests": _total([report["tests"] for report in told if report["tests"] is not None]),
        "failing": [{**failing, "shard": report["shard"]} for report in told for failing in report["failing"]],
        "failing_left_out": sum(report["failing_left_out"] for report in told),
        "slowest": slowest and {"shard": slowest["shard"], "duration": _duration(slowest)},
        "duration": round(sum(map(_duration, timed)), 3),
    }


def _blank(shard: int) -> Report:
    return {
        "shard": shard,
        "worker": None,
        "exit_status": None,
        "duration": None,
        "error": None,
        "last_lines": "",
        "tests": None,
        "failing": [],
        "failing_left_out": 0,
    }


def _fill(text: str, values: dict[str, str]) -> str:
    return PLACE.sub(lambda place: values[place[1]], text)


def _read_tests(report: Report, path: Path, room: int) -> None:
    try:
        report["tests"], report["failing"], report["failing_left_out"] = junit.read(path, room)
    except (Unreadable, OSError) as error:
        # A shard that was ended already has an error that says why.
        report["error"] = report["error"] or str(error)


def _told(shard: int, report: dict[str, Any]) -> Report:
    """Return a shard's report, also for one without a result because it was cancelled or its process died too often."""
    if PART_STATUS not in report:
        return {**_blank(shard), **report}  # type: ignore[typeddict-item]  # a shard's own report
    reason = f"{report[PART_STATUS]}: {report['error_type']}: {report['error_message']}"
    return {**_blank(shard), "worker": report["worker_id"], "error": _beginning_of(reason, 1000)}


def _is_well(report: Report) -> bool:
    return report["exit_status"] == 0 and report["error"] is None


def _trouble(report: Report) -> Trouble:
    return {
        "shard": report["shard"],
        "worker": report["worker"],
        "exit_status": report["exit_status"],
        "error": report["error"],
        "last_lines": report["last_lines"],
    }


def _duration(report: Report) -> float:
    return report["duration"] or 0.0


def _total(counts: list[Counts]) -> Counts | None:
    if not counts:
        return None
    return {
        "tests": sum(each["tests"] for each in counts),
        "failures": sum(each["failures"] for each in counts),
        "errors": sum(each["errors"] for each in counts),
        "skipped": sum(each["skipped"] for each in counts),
        "time": round(sum(each["time"] for each in counts), 3),
    }


def _beginning_of(text: str, size: int) -> str:
    """Return as much of the beginning as fits `size` bytes of JSON."""
    while len(json.dumps(text)) > size:
        text = text[: len(text) * 3 // 4]
    return text


def _end_of(text: str, size: int) -> str:
    while len(json.dumps(text)) > size:
        text = text[len(text) // 4 + 1 :]
    return text
