"""Child processes that end when this one does, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from howl.embedded.account import Account
from howl.errors import EmbeddedServerError
from howl.files import take_lock

# macOS has no prctl: a SIGKILLed parent leaves its children there, and the next start reports the lock they still hold.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

#: The servers' whole environment: an inherited PGPORT, PGDATA or the like would change what they do.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

#: Seconds for a predecessor to release its lock, and for a child to end after each signal.
LOCK_PATIENCE = 5.0
STOP_PATIENCE = 10.0
LOG_TAIL = 4096  # bytes


class Child:
    """A program started now, writing to a log file of its own (the previous one is kept as .log.old).

    `alive` is a lock file that the child and its descendants hold while any of them lives; `account` is the user it
    runs as; `death_signal` is sent to it by the kernel when this process dies. Raises EmbeddedServerError.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        log: Path,
        alive: Path,
        account: Account | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            # The kernel sends the death signal when the thread that started the child ends, not the process.
            raise EmbeddedServerError("Embedded servers can only be started from the main thread.")
        self._log = log
        self._death_signal = death_signal
        self._popen = self._start(argv, cwd, alive, account)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exit_status(self) -> int | None:
        """Return the exit status: None while it runs, a negative signal number if a signal ended it."""
        return self._popen.poll()

    def wait(self, timeout: float) -> int:
        """Wait for it to end and return its exit status; kill it after `timeout` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait(STOP_PATIENCE)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended already."""
        self._popen.send_signal(number)

    def end(self, stop_signal: signal.Signals) -> None:
        """Stop it: send up to three signals and wait at most `STOP_PATIENCE` seconds for each."""
        for number in (stop_signal, self._death_signal, signal.SIGKILL):
            self.send(number)
            try:
                self._popen.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                continue
            return

    def log_tail(self) -> str:
        """Return the last few lines it wrote."""
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-10:])

    def _start(
        self, argv: Sequence[str | Path], cwd: Path, alive: Path, account: Account | None
    ) -> subprocess.Popen[bytes]:
        identity: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
        try:
            with take_over(alive) as mark, _new_log(self._log) as log:
                return subprocess.Popen(
                    argv,
                    cwd=cwd,
                    env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(mark.fileno(),),
                    # Ctrl-C in a terminal is for this process, which stops the servers after their clients.
                    start_new_session=True,
                    # After the change of user, which would clear the request.
                    preexec_fn=partial(die_with, os.getpid(), self._death_signal),
                    **identity,
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(f"{argv[0]} could not be started: {error}.") from error


def take_over(alive: Path) -> BinaryIO:
    """Take a server's lock once no earlier server holds it; raises EmbeddedServerError if one still does."""
    try:
        return take_lock(alive, LOCK_PATIENCE)
    except BlockingIOError:
        raise EmbeddedServerError(
            f"A server left behind by an earlier run still holds {alive}: end the process that `lsof` names for it."
        ) from None


def _new_log(path: Path) -> BinaryIO:
    if path.exists():
        path.replace(path.with_suffix(".log.old"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def die_with(parent: int, death_signal: signal.Signals) -> None:
    """Ask the kernel to end this process with its parent, which may have ended already; runs between fork and exec."""
    if _prctl is None:
        return
    if death_signal != signal.SIGKILL:
        signal.signal(death_signal, signal.SIG_DFL)  # `make &` in a script ignores SIGQUIT, and so would we
    _prctl(PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != parent:
        os._exit(1)
