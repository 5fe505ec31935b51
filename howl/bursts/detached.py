"""A burst on this machine that outlives the command that started it: another command stays with its workers."""

import subprocess
import sys
import time
from pathlib import Path

from howl.bursts import local, records
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.errors import BurstFailed


def start(request: BurstRequest, settings: Settings) -> int:
    """Start a burst, wait until its workers have registered, and return the id of the process that stays.

    Raises BurstFailed.
    """
    log = settings.home / "bursts" / f"{request.burst_id}.log"
    process = _start_keeper(request, log)
    try:
        _wait_until_registered(request, settings, process, log)
    except BaseException:
        process.terminate()
        raise
    return process.pid


def _start_keeper(request: BurstRequest, log: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-P", "-m", "howl.cli", "burst", "start", "--local", "--burst-id", request.burst_id]
    for name in ("workers", "runtime", "grace", "concurrency"):
        value = getattr(request, name)
        line += [] if value is None else [f"--{name}", f"{value:g}"]
    line += ["--requested-by", request.requested_by] if request.requested_by else []
    for name in ("tags", "queues"):
        names = getattr(request, name)
        line += [f"--{name}", ",".join(names)] if names else []
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch(mode=0o600, exist_ok=False)
        with log.open("wb") as output:
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        raise BurstFailed(f"The burst cannot be left running ({error}): choose another HOWL_HOME.") from error


def _wait_until_registered(
    request: BurstRequest, settings: Settings, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + local.REGISTER_TIMEOUT
    while records.count(settings.database(), request.names)[0] < request.workers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise BurstFailed(f"The workers did not register; {log} says why.")
        time.sleep(local.POLL)
