"""The demo's bursts: real `howl burst start --local` commands; normally one, on a slow machine more for the rest."""

import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.processes import Command
from howl.errors import DemoFailed

WORKERS = 2
#: Seconds until the first burst's workers are gone, and seconds before that at which they stop taking tasks.
RUNTIME, GRACE = 40, 9
#: Most bursts for the work; each lasts twice as long as the one before, which was too short for some task.
MOST = 3


class Bursts:
    """Bursts one after the other; leaving this context ends what is left of the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[Command] = []
        #: Runtime of the latest burst in seconds.
        self.runtime = 0

    @property
    def latest(self) -> Command:
        return self.commands[-1]

    def start(self) -> str:
        """Start a burst and return its command line; raises DemoFailed after `MOST` bursts."""
        if len(self.commands) == MOST:
            raise DemoFailed(f"The work was not done after {MOST} bursts: this machine is too busy for the demo.")
        log = self.folder / f"burst-{len(self.commands) + 1}.log"
        self.runtime = RUNTIME * 2 ** len(self.commands)
        line = f"burst start --local --workers {WORKERS} --runtime {self.runtime}s --grace {GRACE}s --concurrency 2"
        # With SIGKILL it could not end its workers; with SIGTERM it does.
        self.commands.append(Command(*line.split(), log=log, death_signal=signal.SIGTERM))
        return f"howl {line}"

    def check(self) -> None:
        """Raise DemoFailed, with its last lines, if the latest burst failed."""
        if self.latest.popen.poll():
            self.latest.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for burst in self.commands:
            if burst.running():
                burst.end(2.0, 2.0)  # the first signal lets tasks end, the second does not
