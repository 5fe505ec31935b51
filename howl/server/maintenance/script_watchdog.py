"""The watchdog stops scripts that block Redis, which serves nobody else meanwhile, and logs whose they were.

The run time of the server's own scripts is proportional to their input; this is for what was overlooked.
"""

import asyncio
import logging
import random
import re
import time
from typing import Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.utils import str_if_bytes

from howl.config import Settings
from howl.connections.redis import redis_client

logger = logging.getLogger(__name__)

#: Seconds between two checks.
PAUSE = 0.75
#: Seconds to wait for an answer: by default, Redis does not answer for the first 5 of a script.
PATIENCE = 15.0
#: Seconds that a script may take to end once killed, and between two checks of whether it has.
ENDING, LOOK = 5.0, 0.05
#: Number of entries of Redis's slow log to examine, and the least duration of one, in microseconds.
ENTRIES, SLOW = 20, 100_000


class Watchdog:
    """A part of `howl server`, with its own connection."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis: Any = redis_client(settings, timeout=PATIENCE)
        #: What was logged about the present script, so that it is logged once.
        self._said = ""

    async def run(self) -> None:
        """Run until cancelled. Raises Redis's errors."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(PAUSE * random.uniform(0.7, 1.3))  # noqa: S311  # jitter, no secret

    def look(self) -> None:
        """Stop the script that blocks Redis, if any; raises Redis's errors."""
        if not self._is_busy():
            self._said = ""
            return
        try:
            self.redis.script_kill()
        except ResponseError as error:
            self._say_why_not(error)
            return
        deadline = time.monotonic() + ENDING
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(LOOK)
        logger.error("A script held up Redis and was stopped. %s", self._whose())

    def _is_busy(self) -> bool:
        try:
            self.redis.ping()
        except ResponseError as error:
            if not str(error).startswith("BUSY "):
                raise
            return True
        return False

    def _say_why_not(self, error: ResponseError) -> None:
        if "NOTBUSY" in str(error):
            return  # it has ended
        why = "it has written already, so only Redis's owner can" if "UNKILLABLE" in str(error) else str(error)
        if why != self._said:
            logger.error("A script holds up Redis and cannot be stopped: %s.", why)
        self._said = why

    def _whose(self) -> str:
        """Name the script's user by its address in the slow log: Redis answers no query while a script runs."""
        try:
            slow = next(entry for entry in self.redis.slowlog_get(ENTRIES) if _is_slow_script(entry))
            address = str_if_bytes(slow["client_address"])
            user = self._user_at(address) or _user_in(slow["command"])
        except NoPermissionError:
            return "Whose it was, Redis tells once `howl init` has brought its users up to date."
        except (RedisError, StopIteration):
            return "Whose it was, Redis does not tell."
        return f"Redis user {user} ran it, from {address}." if user else f"It came from {address}."

    def _user_at(self, address: str) -> str | None:
        clients = self.redis.client_list()
        return next((client["user"] for client in clients if client["addr"] == address), None)


def _is_slow_script(entry: Any) -> bool:
    return bool(entry["duration"] >= SLOW and entry["command"].upper().startswith((b"EVAL", b"FCALL")))


def _user_in(command: bytes) -> str | None:
    """Find the user in the keys: its connection may be gone."""
    found = re.search(rb"_by:([A-Za-z0-9_%-]{1,64}):", command)
    return found and found[1].decode()
