"""Machines that lack what most have: what is missing is said in one sentence, and a death is never a success."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis
from alembic import command

from howl.config import load_settings
from howl.connections.redis import redis_client, require_redis
from howl.embedded.server import free_port
from howl.errors import DatabaseUnavailable
from howl.models import Task
from howl.server import migrate
from tests.helpers.support import eventually, optional_program

HOWL = str(Path(sys.executable).with_name("howl"))


def test_a_user_without_home_and_name_has_a_state_folder_all_the_same():
    question = "from howl.local_stack import default_home; print(default_home())"
    somebody = ["--reuid=54321", "--regid=54321", "--clear-groups"]
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody whom nobody knows")
    line = [optional_program("setpriv"), *somebody, *may_read, sys.executable, "-c", question]
    answer = subprocess.run(line, env={}, capture_output=True, text=True, check=True, timeout=30)
    assert answer.stdout.strip() == "/var/lib/howl"


@pytest.mark.parametrize("words", [("tasks", "list"), ("tasks", "show", "t1")])
def test_a_terminal_that_knows_ascii_alone_ends_no_command(env, session, words):
    session.add(Task(task_id="t1", name="größe", queue="celery", status="queued", rank=0))
    session.commit()
    env |= {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    answer = subprocess.run([HOWL, *words], env=env, capture_output=True, check=False, timeout=30)
    assert (answer.returncode, b"Traceback" in answer.stderr) == (0, False), answer.stderr
    assert b"gr\\xf6\\xdfe" in answer.stdout


def test_a_worker_that_cannot_go_on_ends_with_a_failure(start, worker_env):
    """Eight children need more files than 64, and so does the session when its connection was lost."""
    worker = start("-c", FEW_FILES, HOWL, env=worker_env, program="python")
    assert worker.wait() != 0, worker.output


FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execv(sys.argv[1], [sys.argv[1], "worker", "--name", "w1", "--concurrency", "8"])
"""


def test_a_worker_that_gets_no_file_once_it_is_connected_ends_with_a_failure(start, worker_env):
    worker = start("-c", NO_FILE, env=worker_env, program="python")
    assert worker.wait() == 1, worker.output
    assert "Too many open files. Aborting..." in worker.output


NO_FILE = """
import errno, os, sys
from celery.worker.consumer.tasks import Tasks
from howl.cli import main

def start(self, consumer):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

Tasks.start = start
sys.argv[1:] = ["worker", "--name", "w1"]
main()
"""


def test_a_redis_that_still_reads_its_data_is_waited_for(tmp_path):
    """Debian's, told to take its time: a millisecond a key."""
    server, port = optional_program("redis-server"), free_port()
    line = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    settings = load_settings(redis_url=f"redis://127.0.0.1:{port}")
    with redis_client(settings) as client:
        first = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        eventually(lambda: _answers(client))
        client.mset({f"key{number}": "x" for number in range(1500)})
        client.save()
        client.shutdown(nosave=True)
        first.wait(30)
        slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
        second = subprocess.Popen([*line, *slow], stdout=subprocess.DEVNULL)
        try:
            eventually(lambda: _loads(client))
            require_redis(settings)
            assert client.ping()
        finally:
            second.kill()
            second.wait(30)


def _answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def _loads(client):
    try:
        client.ping()
    except redis.BusyLoadingError:
        return True
    except redis.ConnectionError:
        return False
    pytest.fail("this Redis had read its data before anybody could ask")


def test_a_migration_behind_somebody_says_whom_it_waits_for_and_gives_up(settings):
    told = migrate.configuration(settings.database())
    told.attributes["patience"] = 0
    with psycopg.connect(settings.database(), application_name="a long look") as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtext('howl.migrate'))")
        with pytest.raises(
            DatabaseUnavailable, match=r"waits for process \d+ of PostgreSQL \(a long look, idle in tr.*gives up"
        ):
            command.upgrade(told, "head")
    command.upgrade(told, "head")
