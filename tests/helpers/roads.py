"""A way to a server that stops carrying without closing: neither end knows."""

import select
import socket
import threading
from contextlib import ExitStack
from typing import Any, Self

#: Seconds between two looks at whether it is over.
LOOK = 0.1


class Road(threading.Thread):
    """Carries connections on loopback to a port, until `dies`, and not while it `stands_still`."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: Both ends of each connection that is carried: what comes out of one goes into the other.
        self._other: dict[socket.socket, socket.socket] = {}
        self._open = ExitStack()
        self._over, self._death, self._still = threading.Event(), threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self.join(10)
        self._open.close()
        self._listener.close()

    def dies(self) -> None:
        """What is connected now hears and says nothing any more; who connects anew does."""
        self._death.set()

    def stands_still(self) -> None:
        """Nothing is carried: what is connected hears nothing, and who connects anew is let in and hears nothing."""
        self._still.set()

    def goes_on(self) -> None:
        """With all that waits."""
        self._still.clear()

    def run(self) -> None:
        while not self._over.is_set():
            readable, _, _ = select.select([self._listener, *self._other], [], [], LOOK)
            if self._death.is_set():
                self._death.clear()
                self._other.clear()
                continue
            if self._still.is_set():
                self._over.wait(LOOK)
                continue
            for one in readable:
                if one is self._listener:
                    self._connect()
                elif one in self._other:
                    self._carry(one)

    def _connect(self) -> None:
        near = self._open.enter_context(self._listener.accept()[0])
        far = self._open.enter_context(socket.create_connection(("127.0.0.1", self._target), timeout=5))
        self._other |= {near: far, far: near}

    def _carry(self, one: socket.socket) -> None:
        other = self._other[one]
        try:
            if data := one.recv(1 << 16):
                other.sendall(data)
                return
        except OSError:
            pass  # one end is gone, and so is the other then
        for end in (one, other):
            self._other.pop(end, None)
            end.close()
