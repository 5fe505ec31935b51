"""Found first by a process that is told so: its clock is wrong from its first line on."""

import datetime
import os
import time

AHEAD = float(os.environ["CLOCK_AHEAD"])
_time, _datetime = time.time, datetime.datetime


class _Kind(type(_datetime)):
    def __instancecheck__(cls, value):
        return isinstance(value, _datetime)


class _Crooked(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def utcnow(cls):
        return _datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=AHEAD)


time.time = lambda: _time() + AHEAD
datetime.datetime = _Crooked
