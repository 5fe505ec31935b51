"""The demo's bursts: real `howl burst start --local` commands; normally one, on a slow machine others for the rest."""

import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.processes import Command
from howl.errors import DemoFailed

WORKERS = 2
#: Seconds until the first burst's workers are gone, and how long before that they take no more tasks.
RUNTIME, GRACE = 40, 9
#: Most bursts that the work may take; each lasts twice as long as the one before, which was too short for some task.
MOST = 3


class Bursts:
    """Bursts one after the other; leaving this context ends what is left of the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[Command] = []
        #: Seconds that the latest of them has.
        self.runtime = 0

    @property
    def latest(self) -> Command:
        return self.commands[-1]

    def start(self) -> str:
        """Start one; returns its command line. Raises DemoFailed when there were too many."""
        if len(self.commands) == MOST:
            raise DemoFailed(f"The work was not done after {MOST} bursts: this machine is too busy for the demo.")
        log = self.folder / f"burst-{len(self.commands) + 1}.log"
        self.runtime = RUNTIME * 2 ** len(self.commands)
        line = f"burst start --local --workers {WORKERS} --runtime {self.runtime}s --grace {GRACE}s --concurrency 2"
        # Killed with us, it could not end its workers; asked to end, it does.
        self.commands.append(Command(*line.split(), log=log, death_signal=signal.SIGTERM))
        return f"howl {line}"

    def check(self) -> None:
        """Raise DemoFailed, with its last words, if the latest one came to a bad end."""
        if self.latest.popen.poll():
            self.latest.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for burst in self.commands:
            if burst.running():
                burst.end(2.0, 2.0)  # the first word lets tasks end, the second does not
