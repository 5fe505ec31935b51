"""The schedule and the threshold by which a server starts bursts: HOWL_BURST_SCHEDULE and HOWL_BURST_WHEN, strictly."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from celery.schedules import ParseException, crontab

from howl.durations import parse_duration
from howl.errors import SettingsError

MINUTE = timedelta(minutes=1)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Schedule:
    """Minutes (UTC) of one or more cron expressions; all five fields of one must match, as in Celery's crontab."""

    lines: tuple[crontab, ...]

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Parse a schedule such as `*/30 8-17 * * mon-fri; 0 3 * * *`; raises SettingsError."""
        return cls(tuple(_crontab(line) for line in text.split(";")))

    def newest(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last minute of the schedule that began after `after` and not after `until`; None if none did."""
        minute = until.astimezone(UTC).replace(second=0, microsecond=0)
        while minute > after:
            if any(_fits(line, minute) for line in self.lines):
                return minute
            minute -= MINUTE
        return None


@dataclass(frozen=True)
class Demand:
    """A threshold: number of tasks `waiting` in the queues, or seconds that the `oldest` of them has waited."""

    measure: str
    sign: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> "Demand":
        """Parse a threshold such as `waiting > 100` or `oldest > 5m`; raises SettingsError."""
        match = re.fullmatch(r"\s*(waiting|oldest)\s*(>=?)\s*(\S+)\s*", text)
        threshold = _threshold(match[1], match[3]) if match else None
        if match is None or threshold is None:
            raise SettingsError(
                f"HOWL_BURST_WHEN: {text[:40]!r} is no threshold: write `waiting > 100` or `oldest > 5m`."
            )
        return cls(match[1], match[2], threshold)

    def is_met(self, value: float) -> bool:
        """Return whether so many tasks, or so many seconds, call for a burst."""
        return COMPARISONS[self.sign](value, self.threshold)


def _crontab(line: str) -> crontab:
    try:
        return crontab.from_string(" ".join(line.split()))
    except (ValueError, ParseException) as error:
        raise SettingsError(
            f"HOWL_BURST_SCHEDULE: {line.strip()[:40]!r} is no schedule ({error}): write five fields, minute hour day "
            "month weekday (0-6 or sun-sat), in UTC; several schedules with ; between them."
        ) from None


def _fits(line: crontab, minute: datetime) -> bool:
    return (
        minute.minute in line.minute
        and minute.hour in line.hour
        and minute.day in line.day_of_month
        and minute.month in line.month_of_year
        and minute.isoweekday() % 7 in line.day_of_week
    )


def _threshold(measure: str, text: str) -> float | None:
    """Parse a number of tasks, or seconds; return None if it is neither."""
    if measure == "waiting":
        return float(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None
    try:
        return parse_duration(text)
    except ValueError:
        return None
