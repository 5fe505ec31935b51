"""The report of what a worker did, in the summary of its job on GitHub."""

import logging
import re
import time
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown
from celery.worker import state

from howl.node_names import worker_id_of
from howl.worker.lifecycle import environment

logger = logging.getLogger(__name__)

#: Names the file that GitHub shows on a job's page; each step has its own.
VARIABLE = "GITHUB_STEP_SUMMARY"


class Summary(bootsteps.Step):
    """The boot step that writes the summary once, when the worker leaves, however it does."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.worker = parent
        self._began = time.monotonic()
        self._file = environment.told(VARIABLE)
        if self._file:
            parent.howl_summary = self  # Celery keeps weak references to receivers and steps alike
            worker_shutdown.connect(self._write)

    def _write(self, **_: Any) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with Path(file).open("a") as summary:
                summary.write(self._text())
        except OSError as error:
            logger.warning("The job's summary cannot be written (%s).", error)

    def _text(self) -> str:
        name, minutes = worker_id_of(self.worker.hostname), (time.monotonic() - self._began) / 60
        head = f"### {name}\n\nHere for {minutes:.1f} min, {self.worker.concurrency} tasks at once.\n\n"
        begun = state.total_count.most_common()
        if not begun:
            return f"{head}It began no task.\n"
        # A task's name is whatever its sender wrote.
        rows = (f"| {re.sub(r'[^A-Za-z0-9_.:-]', '?', task)} | {count} |\n" for task, count in begun)
        return f"{head}| task | begun |\n|---|---|\n{''.join(rows)}"
