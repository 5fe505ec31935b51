"""`howl tasks watch` and `howl watch`: what happens now, on a terminal, in a pipe, and for programs."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import update

from howl.cli.ui.dashboard import drawn, shares
from howl.cli.ui.follow import Feed, follow
from howl.cli.watch import _look
from howl.connections import postgres
from howl.connections.redis import redis_client
from howl.models import Task, TaskEvent, Worker
from howl.queries import overview
from howl.queries.live_state import Gauge
from tests.helpers.support import PATIENCE, eventually, run_program
from tests.helpers.terminal import Terminal

HOWL = str(Path(sys.executable).with_name("howl"))
TASK_ID = "1f0c9a00-0000-4000-8000-000000000001"
OTHER_ID = "77b21e00-0000-4000-8000-000000000002"
END_OF_PAGE = "\x1b[?1049l"


@pytest.fixture
def record(settings):
    """Write rows, as `howl server` would."""

    def _record(*rows):
        with postgres.session(settings.database()) as opened:
            opened.add_all(rows)

    return _record


@pytest.fixture
def happens(record):
    """Something happens to the task, as the bridge and the recorder write it."""

    def _happens(kind, task_id=TASK_ID, **data):
        record(TaskEvent(task_id=task_id, kind=kind, worker_id="w1", data=data))

    return _happens


@pytest.fixture
def ends(settings):
    """The task ends, as the recorder writes it."""

    def _ends(status="succeeded", task_id=TASK_ID, **values):
        ended = {"status": status, "rank": 3, "finished_at": datetime.now(UTC), "runtime": 2.5, **values}
        with postgres.session(settings.database()) as opened:
            opened.execute(update(Task).where(Task.task_id == task_id).values(ended))
            opened.add(TaskEvent(task_id=task_id, kind=status, worker_id="w1"))

    return _ends


@pytest.fixture
def running(record):
    """One worker, and one task that it runs."""
    now = datetime.now(UTC)
    record(
        Worker(worker_id="w1", last_heartbeat_at=now, concurrency=4, deadline_at=now + timedelta(minutes=30)),
        Task(task_id=TASK_ID, name="tests.report", status="started", rank=1, attempts=1, worker_id="w1",
             queue="celery", started_at=now),
    )  # fmt: skip


@pytest.fixture
def howl(env):
    """Run `howl …` to its end, without a terminal."""
    return lambda *line: run_program([HOWL, *line], env, timeout=60)


@pytest.fixture
def begin(env):
    """Begin `howl …` without a terminal; standard output in a pipe, by lines."""
    begun = []

    def _begin(*line):
        begun.append(
            subprocess.Popen([HOWL, *line], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return begun[-1]

    yield _begin
    for process in begun:
        process.kill()
        process.communicate(timeout=PATIENCE)


# --- one task --------------------------------------------------------------------------------------------------------


def test_a_watched_task_shows_its_progress_and_lines_on_a_terminal_and_its_result_alone_in_the_pipe(
    running, happens, ends, env
):
    with Terminal([HOWL, "tasks", "watch", TASK_ID[:6]], env, piped=True) as terminal:
        eventually(lambda: "tests.report: started on w1" in terminal.printed)
        happens("progress", done=34, total=100, note="fetching")
        eventually(lambda: "34/100, fetching" in terminal.printed)
        assert "━" in terminal.printed
        happens("log", lines=["page 34 is large"], dropped=2)
        eventually(lambda: "page 34 is large" in terminal.printed)
        ends(result={"pages": 100})
        assert terminal.ends() == 0
        assert "… 2 lines left out" in terminal.printed
        assert "succeeded on w1 in 2.50 s" in terminal.printed
        assert terminal.piped() == "pages: 100\n"


def test_without_a_terminal_lines_tell_the_same_and_nothing_steers(running, happens, ends, begin):
    happens("log", lines=["\x1b[2J said before"], dropped=0)
    watching = begin("tasks", "watch", TASK_ID)
    assert watching.stderr.readline() == f"Task {TASK_ID}\n"
    assert watching.stderr.readline() == "started on w1\n"
    assert watching.stderr.readline() == "\\x1b[2J said before\n"
    happens("progress", done=1, total=None, note="one")
    assert watching.stderr.readline() == "progress: 1, one\n"
    ends(result="done")
    assert watching.communicate(timeout=PATIENCE) == ("done\n", "succeeded on w1 in 2.50 s\n")
    assert watching.returncode == 0


def test_for_programs_everything_that_happens_is_a_line_of_json(running, happens, ends, begin):
    happens("received", name="tests.report")
    watching = begin("tasks", "watch", TASK_ID, "--json")
    first, received = (json.loads(watching.stdout.readline()) for _ in range(2))
    assert (first["kind"], first["data"]["status"]) == ("task", "started")
    assert (received["kind"], received["worker_id"], received["data"]) == ("received", "w1", {"name": "tests.report"})
    happens("progress", done=1, total=2, note=None)
    told = json.loads(watching.stdout.readline())
    assert (told["kind"], told["data"]["total"], set(told)) == (
        "progress", 2, {"task_id", "at", "kind", "worker_id", "data"},
    )  # fmt: skip
    ends(result=[1])
    succeeded, result = map(json.loads, watching.communicate(timeout=PATIENCE)[0].splitlines())
    assert (succeeded["kind"], result["kind"], result["data"]["result"]) == ("succeeded", "result", [1])


def test_a_watched_task_that_fails_tells_its_error_and_ends_with_status_1(running, ends, howl):
    ends("failed", error_type="ValueError", error_message="no such luck")
    answer = howl("tasks", "watch", TASK_ID)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "failed: ValueError: no such luck" in answer.stderr


def test_several_tasks_are_watched_until_the_last_has_ended(running, record, happens, ends, begin):
    record(Task(task_id=OTHER_ID, name="tests.echo", queue="celery"))
    watching = begin("tasks", "watch", TASK_ID, OTHER_ID)
    happens("log", lines=["of the one"])
    assert "1f0c9a00  of the one\n" in [watching.stderr.readline() for _ in range(4)]
    ends(result=1)
    ends("failed", OTHER_ID, error_type="ValueError", error_message="no")
    stdout, stderr = watching.communicate(timeout=PATIENCE)
    assert stdout == f"==> {TASK_ID} succeeded <==\n1\n==> {OTHER_ID} failed <==\n"
    assert "1 of 2 tasks did not succeed." in stderr
    assert watching.returncode == 1


def test_words_that_come_after_the_end_are_waited_for(running, happens, ends, settings):
    happens("received")
    looks = follow(settings.database(), [TASK_ID])
    assert next(looks).going_on
    ends()
    assert next(looks).going_on
    happens("log", lines=["the last word"])
    later = list(looks)
    assert ["the last word"] in [event["data"].get("lines") for look in later for event in look.events]
    assert [task.task_id for task in later[-1].over] == [TASK_ID]


def test_ctrl_c_ends_the_watching_and_not_the_task(running, env, settings):
    with Terminal([HOWL, "tasks", "watch", TASK_ID], env) as terminal:
        eventually(lambda: "started" in terminal.printed)
        terminal.ctrl_c()
        assert terminal.ends() == 1
        assert "No longer waiting; the task goes on" in terminal.printed
        assert "Traceback" not in terminal.printed


def test_a_watch_ends_in_time_and_an_unknown_task_is_one_sentence(running, howl):
    late = howl("tasks", "watch", TASK_ID, "--timeout", "0.5s")
    assert (late.returncode, "Not ended within 0.50 s; the task goes on" in late.stderr) == (1, True)
    unknown = howl("tasks", "watch", TASK_ID, "nothing-like-it")
    assert (unknown.returncode, unknown.stderr.count("\n"), unknown.stdout) == (1, 1, "")


def test_an_event_that_becomes_visible_after_a_later_one_is_not_missed(running, happens, settings):
    def read():
        with postgres.session(settings.database()) as opened:
            return [event["kind"] for event in feed.read(opened)]

    feed = Feed([TASK_ID])
    with postgres.session(settings.database()) as slow:
        slow.add(TaskEvent(task_id=TASK_ID, kind="log"))
        slow.flush()  # it has its number
        happens("progress")
        assert read() == ["progress"]
    assert read() == ["log"]
    assert read() == []


@pytest.mark.alone
def test_progress_reaches_those_who_watch_within_a_third_of_a_second(running, happens, begin):
    """500 ms in all are promised; the worker, the way at 50 ms and the bridge have the rest of them."""
    watching = begin("tasks", "watch", TASK_ID, "--json")
    watching.stdout.readline()
    took = []
    for number in range(10):
        happens("progress", done=number, total=10, note=None)
        written = time.monotonic()
        assert json.loads(watching.stdout.readline())["data"]["done"] == number
        took.append(time.monotonic() - written)
        time.sleep(0.03 * number)
    assert max(took) < 0.33


# --- with real workers -----------------------------------------------------------------------------------------------


def test_a_task_that_uses_celerys_own_update_state_shows_that_as_progress(server, start_worker, howl, env, tmp_path):
    start_worker("w1", "--concurrency", "1")
    gate = tmp_path / "gate"
    line = [HOWL, "submit", "tests.report", "--args", json.dumps([str(gate)]), "--wait"]
    with Terminal(line, env, piped=True) as terminal:
        eventually(lambda: "1/2, HALFWAY" in terminal.printed)
        # NATS tells later that the task was received, which takes nothing back.
        (task,) = json.loads(howl("tasks", "list", "--json").stdout)
        shown = eventually(lambda: _with_event(howl, task["task_id"], "received"))
        assert (shown["progress"]["done"], shown["progress"]["note"]) == (1, "HALFWAY")
        gate.touch()
        assert terminal.ends() == 0
        assert terminal.piped() == "done\n"


def _with_event(howl, task_id, kind):
    """The task as it is shown once that has happened to it."""
    shown = json.loads(howl("tasks", "show", task_id, "--json").stdout)
    return shown if kind in [event["kind"] for event in shown["events"]] else None


# --- the house -------------------------------------------------------------------------------------------------------


@pytest.fixture
def house(running, happens, record, ends, settings):
    """One task that runs, one that has just failed, and three that wait."""
    record(Task(task_id=OTHER_ID, name="tests.fail", queue="celery", worker_id="w1"))
    ends("failed", OTHER_ID, error_type="ValueError")
    with contextlib.closing(redis_client(settings)) as redis:
        redis.set(settings.key(f"progress:{TASK_ID}"), json.dumps({"done": 1, "total": 4, "note": "first"}))
        redis.lpush(settings.key("slow"), "a", "b")
        redis.lpush(settings.key("slow\x06\x163"), "c")
    return settings


def test_the_house_is_shown_live_on_a_terminal_until_ctrl_c(house, happens, ends, env):
    with Terminal([HOWL, "watch"], env) as terminal:
        for seen in ("w1", "1 of 4", "tests.report", "1/4, first", "tests.fail", "ValueError", "slow", "3 waiting"):
            eventually(lambda seen=seen: seen in terminal.printed)
        ends()
        eventually(lambda: "succeeded" in terminal.printed)
        terminal.ctrl_c()
        assert terminal.ends() == 0
        assert END_OF_PAGE in terminal.printed
        assert "Traceback" not in terminal.printed


@pytest.mark.parametrize(
    ("workers", "running", "said"),
    [
        ([], ["gone"], ["0 of 0 running", "1 on workers that are gone"]),
        ([("w1", 4)], ["w1", "w1", "gone"], ["2 of 4 running", "1 on workers that are gone"]),
        ([("w1", None)], ["w1"], ["1 running"]),
        ([("w1", 1)], ["w1", "w1"], ["2 running"]),
        ([("w1", 4), ("w2", 2)], [], ["0 of 6 running"]),
    ],
)
def test_what_runs_is_never_more_than_what_can_run(session, workers, running, said):
    session.add_all(Worker(worker_id=worker_id, concurrency=number) for worker_id, number in workers)
    session.add_all(
        Task(task_id=f"t{n}", status="started", rank=1, worker_id=worker_id) for n, worker_id in enumerate(running)
    )
    session.commit()
    console = Console(width=140, file=io.StringIO(), color_system=None)
    console.print(drawn(overview.house(session) | {"queues": {}, "trouble": None}, console, rows=None))
    first = console.file.getvalue().splitlines()[0]
    assert [part for part in first.split("   ") if "running" in part or "gone" in part] == said


def test_without_a_terminal_the_house_is_shown_once(house, howl):
    answer = howl("watch")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "tests.report" in answer.stdout
    assert "\x1b" not in answer.stdout


def test_for_programs_a_look_is_a_line_of_json(house, begin, ends):
    watching = begin("watch", "--json", "--interval", "0.2s")
    first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
    assert first["at"] < second["at"]
    assert [(worker["worker_id"], worker["running"]) for worker in first["workers"]] == [("w1", 1)]
    assert [(task["task_id"], task["progress"]["done"]) for task in first["running"]] == [(TASK_ID, 1)]
    assert [(task["task_id"], task["status"]) for task in first["ended"]] == [(OTHER_ID, "failed")]
    assert (first["queues"], first["running_total"]) == ({"slow": 3}, 1)
    ends()
    looks = (json.loads(watching.stdout.readline()) for _ in range(50))
    last = next(look for look in looks if look["running_total"] == 0)
    assert last["ended_per_second"] in (0.1, 0.2)  # of the last ten seconds, which the first end may have left
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(PATIENCE) == 0


def test_a_house_whose_redis_is_away_is_shown_without_queues(house, env):
    line = [HOWL, "watch", "--json", "--once"]
    away = env | {"HOWL_REDIS_URL": "redis://:sekret@127.0.0.1:1/0"}
    answer = run_program(line, away, timeout=60, check=True)
    seen = json.loads(answer.stdout)
    assert (seen["queues"], len(seen["running"])) == (None, 1)
    assert "sekret" not in answer.stdout


@pytest.mark.parametrize("columns", [30, 60, 80, 140])
@pytest.mark.parametrize("rows", [8, 24, 60])
def test_a_house_with_many_of_everything_fits_any_terminal(house, record, columns, rows):
    now = datetime.now(UTC)
    record(
        *(Worker(worker_id=f"github-worker-{n}", last_heartbeat_at=now, concurrency=2) for n in range(40)),
        *(Task(task_id=f"task-{n}", name="a.long.name" * 8, status="started", rank=1, worker_id="w1", started_at=now)
          for n in range(40)),
    )  # fmt: skip
    with Gauge(house) as gauge:
        seen = _look(gauge)
    console = Console(width=columns, height=rows, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(drawn(seen, console, rows=rows))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    assert [line for line in lines if line.startswith("… and ")]


def test_lines_are_dealt_out_to_lists_that_want_them():
    assert shares([10, 2, 0], 6) == [4, 2, 0]
    assert shares([1, 1], 6) == [1, 1]
    assert shares([5], -3) == [0]
