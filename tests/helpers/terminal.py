"""A terminal of a test's own: a program's screen is what it wrote there."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from typing import Self

from tests.helpers.support import PATIENCE


class Terminal:
    """A program that has this terminal for its standard error, and for its standard output unless that is piped."""

    def __init__(
        self, argv: list[str], env: dict[str, str], *, columns: int = 80, rows: int = 24, piped: bool = False
    ) -> None:
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        stdout = subprocess.PIPE if piped else its
        self.process = subprocess.Popen(
            argv, env=env | {"TERM": "xterm"}, stdin=its, stdout=stdout, stderr=its, start_new_session=True
        )
        os.close(its)
        self._printed = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._ours)
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def printed(self) -> str:
        """All it wrote to the terminal so far."""
        return self._printed.decode(errors="replace")

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ends(self) -> int:
        """Its exit status, when it has ended and all it wrote is read."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def piped(self) -> str:
        """Its standard output, when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Linux's way of saying that the terminal has no other end any more
            while part := os.read(self._ours, 4096):
                self._printed += part
