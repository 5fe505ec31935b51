"""The doorbell: a worker with room waits on it for the next push, over a connection of its own."""

from typing import Any

import redis

#: Seconds after which Redis answers even if nobody rang, so that a dead connection is noticed.
PATIENCE = 5


def doorbell(list_name: str) -> str:
    """Return the doorbell of a queue, given the list of any of its priorities."""
    return f"doorbell:{list_name.partition(chr(6))[0]}"


class Bell:
    """One BRPOP at a time, sent when there is room and answered by the token of one push."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connection: Any = None
        self._asked = False

    def listen(self, keys: list[str]) -> Any:
        """Return a socket that becomes readable when somebody rings; None while Redis is away."""
        try:
            if self._connection is None:
                self._connection = self._pool.make_connection()
                self._connection.connect()
                self._asked = False
            if not self._asked:
                self._connection.send_command("BRPOP", *keys, PATIENCE)
                self._asked = True
        except (redis.RedisError, OSError):
            self.hang_up()
            return None
        return self._connection._sock  # noqa: SLF001  # redis-py gives no other way to wait for it

    @property
    def asked(self) -> Any:
        """The socket while an answer is due, or None; the token may come when this worker has no more room."""
        return self._connection._sock if self._connection is not None and self._asked else None  # noqa: SLF001

    def answer(self) -> bytes | None:
        """Read the answer from a readable socket; return the doorbell that rang, or None."""
        try:
            rung = self._connection.read_response()
            self._asked = False
        except (redis.RedisError, OSError):
            self.hang_up()
            return None
        return rung[0] if rung else None

    def hang_up(self) -> None:
        """Close the connection; `listen` opens a new one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
