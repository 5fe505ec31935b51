"""What is asked of Celery's prefork pool, of the real one: these fail when its inside changes."""

import subprocess
import sys

import pytest

#: A pool of one child in a loop of its own; prints how many writes each job took, and how it ended.
WRITES = """
import sys, time
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop
from howl.worker.pool import write_whole_jobs

hub = Hub()
set_event_loop(hub)
app = Celery("test")
pool = TaskPool(1, app=app, initargs=(app, "test"), threads=False)
pool.start()
if sys.argv[1] == "ours":
    write_whole_jobs(pool)
pool.register_with_event_loop(hub)
child = pool._pool._pool[0]
send, writes, ended = child.send_job_offset, [], []
child.send_job_offset = lambda data, offset: writes.append(len(data) - offset) or send(data, offset)
loop = hub.create_loop()
for argument in ("short", "long" * 2000):
    writes.clear(), ended.clear()
    pool.apply_async(len, (argument,), callback=ended.append)
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
        next(loop)
    print(len(writes), *ended)
pool.terminate()
"""


@pytest.mark.parametrize(("whose", "first"), [("celery's", "2 5"), ("ours", "1 5")])
def test_a_short_job_reaches_its_child_in_one_write_and_a_long_one_whole(whose, first):
    argv = [sys.executable, "-c", WRITES, whose]
    written = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=True).stdout
    assert written.splitlines() == [first, "2 8000"]
