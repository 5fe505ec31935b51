"""The doorbell: a worker with room waits here for the next push, on a connection of its own."""

from typing import Any

import redis

#: Seconds after which Redis answers though nobody rang, so that a dead connection is noticed.
PATIENCE = 5


def doorbell(list_name: str) -> str:
    """The doorbell of a queue, by any of its priorities' lists."""
    return f"doorbell:{list_name.partition(chr(6))[0]}"


class Bell:
    """One BRPOP at a time: asked when there is room, answered by one push's token."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connection: Any = None
        self._asked = False

    def listen(self, keys: list[str]) -> Any:
        """A socket that becomes readable when somebody rings; None while Redis is away."""
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
        """The socket, while Redis owes an answer: it may hand this worker a token that it has no room for by now."""
        return self._connection._sock if self._connection is not None and self._asked else None  # noqa: SLF001

    def answer(self) -> bytes | None:
        """Take the answer off a readable socket; the doorbell that rang, None if none did."""
        try:
            rung = self._connection.read_response()
            self._asked = False
        except (redis.RedisError, OSError):
            self.hang_up()
            return None
        return rung[0] if rung else None

    def hang_up(self) -> None:
        """Close the connection; listening makes a new one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
