"""What is asked of Celery's prefork pool, of the real one: these fail when its inside changes."""

import subprocess
import sys

import pytest

#: A pool of one child in a loop of its own.
POOL = """
import os, shutil, subprocess, sys, tempfile, time, weakref
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop
from howl.worker.consumer.pool import slots, withdraw, write_whole_jobs

hub = Hub()
set_event_loop(hub)
app = Celery("test")
pool = TaskPool(1, app=app, initargs=(app, "test"), threads=False, putlocks=False)
pool.start()
if sys.argv[1] == "ours":
    write_whole_jobs(pool)
pool.register_with_event_loop(hub)
loop = hub.create_loop()

def turn_until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        next(loop)
"""

#: How many writes each job took, and how it ended.
WRITES = """
child = pool._pool._pool[0]
send, writes, ended = child.send_job_offset, [], []
child.send_job_offset = lambda data, offset: writes.append(len(data) - offset) or send(data, offset)
for argument in ("short", "long" * 2000):
    writes.clear(), ended.clear()
    pool.apply_async(len, (argument,), callback=ended.append)
    turn_until(lambda: ended)
    print(len(writes), *ended)
pool.terminate()
"""

#: Which of two requests is given back while the first runs, and who has ended at last.
WITHDRAWN = """
class Request:
    def __init__(self, tag):
        self.id = self.claim_tag = tag
        wait = ["timeout", "30", "cat", gate]
        self.job = pool.apply_async(subprocess.call, (wait,), callback=lambda _: ended.append(tag))
        self._apply_result = weakref.ref(self.job)

ended, gate = [], os.path.join(tempfile.mkdtemp(), "gate")
os.mkfifo(gate)  # who reads it waits for who writes
requests = [Request("first"), Request("second")]
turn_until(lambda: requests[0].job._accepted)
print(*[withdraw(pool, None, request) for request in requests], slots(pool))
open(gate, "w").close()
shutil.rmtree(os.path.dirname(gate))
pool.apply_async(len, ("third",), callback=lambda _: ended.append("third"))
turn_until(lambda: "third" in ended)
print(*ended)
pool.terminate()
"""


def printed(*scripts, whose="ours"):
    """What a process of its own prints: it forks, and ends what it forked."""
    argv = [sys.executable, "-c", "\n".join(scripts), whose]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, check=True).stdout.splitlines()


@pytest.mark.parametrize(("whose", "first"), [("celery's", "2 5"), ("ours", "1 5")])
def test_a_short_job_reaches_its_child_in_one_write_and_a_long_one_whole(whose, first):
    assert printed(POOL, WRITES, whose=whose) == [first, "2 8000"]


def test_a_job_that_no_child_was_sent_can_be_taken_back_and_one_that_runs_cannot():
    assert printed(POOL, WITHDRAWN) == ["None second 1", "first third"]
