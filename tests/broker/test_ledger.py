"""The ledger's own failure, which must not be silent."""

import signal
import subprocess
import sys

FAILS = """
import logging, time
from howl.broker.ledger import Ledger
from howl.broker.room import Room
from howl.config import load_settings

logging.basicConfig()
ledger = Ledger(load_settings(), "w1.life", Room(lambda: 1 // 0), print, print)
ledger.listen([["celery"]])
ledger.start()
time.sleep(60)
"""


def test_a_worker_whose_ledger_fails_says_so_and_ends(env):
    ended = subprocess.run(
        [sys.executable, "-c", FAILS], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert "The ledger has failed: this worker ends" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr
