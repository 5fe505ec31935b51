"""Flower's buttons do to HOWL's workers what they say."""

import signal
from contextlib import contextmanager

import pytest

from tests.helpers.crew import CELERY, said
from tests.helpers.support import eventually
from tests.helpers.visits import LOGIN, Flower

#: By name, as many tasks at once each.
POOLS = {"w1": "prefork", "w2": "threads"}
SLOTS = 2


@pytest.fixture(scope="module")
def crew(enlist):
    """A worker with processes, and one with threads; what is sent to a worker's own queue is for it alone."""
    made = enlist("prefork")
    said(made.hire("w2", "--pool", "threads", "--concurrency", "2"), " ready.")
    return made


@pytest.fixture(scope="module")
def flower(crew):
    env = crew.env | {"FLOWER_BASIC_AUTH": LOGIN, "HOWL_HOME": str(crew.folder / "home")}
    with Flower(crew.run("flower", "--port", "0", env=env)) as running:
        running.knows(*(f"celery@{name}" for name in POOLS))
        yield running


@pytest.fixture(params=POOLS)
def name(request):
    return request.param


class Work:
    """Tasks that say that they began, and wait for the gate."""

    def __init__(self, crew, folder, queue):
        self.crew, self.queue = crew, queue
        self.begun, self.gate = folder / "begun", folder / "gate"
        self.begun.touch()
        self.sent = []

    def send(self, number=1):
        options = {"queue": self.queue}
        self.sent += [self.crew.send("wait", str(self.begun), str(self.gate), **options) for _ in range(number)]
        return self.sent[-1]

    def began(self, number):
        eventually(lambda: len(self.begun.read_text()) >= number)
        assert len(self.begun.read_text()) == number

    def ends(self):
        self.gate.touch()
        assert {self.crew.ended(task_id).status for task_id in self.sent} == {"succeeded"}

    @property
    def waiting(self):
        return self.crew.redis.llen(self.crew.key(self.queue))


@pytest.fixture
def work(crew, tmp_path):
    """Work for a queue, or for that of a worker."""
    made = []

    def _work(queue):
        made.append(Work(crew, tmp_path, queue))
        return made[-1]

    yield _work
    (tmp_path / "gate").touch()


def press(flower, path, **query):
    """What a worker did shows afterwards; on a busy machine it may do it later than Flower waits for its word."""
    answer = flower.press(path, **query)
    assert answer.status_code == 200 or "Unknown reason" in answer.text, answer.text


@contextmanager
def stopping(process):
    """The process ends, and well."""
    yield
    assert process.wait() == 0, process.output


def test_a_pool_grows_at_once_and_shrinks_but_never_to_nothing(flower, crew, work, name):
    press(flower, f"/api/worker/pool/grow/celery@{name}", n=2)
    full = work(f"worker.{name}")
    full.send(SLOTS + 3)
    full.began(SLOTS + 2)
    full.ends()
    press(flower, f"/api/worker/pool/shrink/celery@{name}", n=3)
    full.gate.unlink()
    single = work(f"worker.{name}")
    single.send(2)
    single.began(SLOTS + 3 + 1)
    eventually(lambda: "one must stay" in flower.press(f"/api/worker/pool/shrink/celery@{name}").text)
    single.ends()
    press(flower, f"/api/worker/pool/grow/celery@{name}", n=1)


def test_what_is_revoked_while_it_waits_runs_nowhere_not_on_a_worker_that_starts_later_either(flower, crew, work):
    later = work("worker.later")
    task_id = later.send()
    press(flower, f"/api/task/revoke/{task_id}")
    crew.hire("later", "--pool", "solo")
    assert crew.ended(task_id).status == "cancelled"
    assert later.begun.read_text() == ""


def test_what_is_revoked_and_terminated_stops_where_it_runs(flower, crew, work):
    running = work("worker.w1")
    task_id = running.send()
    running.began(1)
    press(flower, f"/api/task/revoke/{task_id}", terminate="true")
    assert crew.ended(task_id).status == "cancelled"


def test_a_new_time_limit_holds_for_what_is_received_from_then_on(flower, crew, work):
    press(flower, "/api/task/timeout/endings.wait", workername="celery@w1", soft=0.3)
    late = work("worker.w1")
    task_id = late.send()
    assert "SoftTimeLimitExceeded" in crew.ended(task_id).error_type
    press(flower, "/api/task/timeout/endings.wait", workername="celery@w1")
    task_id = late.send()
    late.gate.touch()
    assert crew.ended(task_id).status == "succeeded"


def test_a_rate_limit_keeps_tasks_apart_until_it_is_lifted(flower, crew, name):
    press(flower, "/api/task/rate-limit/endings.echo", workername=f"celery@{name}", ratelimit="20/m")
    first, second = (crew.send("echo", number, queue=f"worker.{name}") for number in range(2))
    apart = crew.ended(second).started_at - crew.ended(first).started_at
    press(flower, "/api/task/rate-limit/endings.echo", workername=f"celery@{name}", ratelimit="0")
    assert apart.total_seconds() > 2.5


def test_a_queue_is_taken_from_when_added_and_when_cancelled_no_more(flower, crew, work, name):
    extra = work(f"extra.{name}")
    press(flower, f"/api/worker/queue/add-consumer/celery@{name}", queue=extra.queue)
    extra.send(SLOTS + 2)
    extra.began(SLOTS)
    press(flower, f"/api/worker/queue/cancel-consumer/celery@{name}", queue=extra.queue)
    eventually(lambda: extra.waiting == 2)
    extra.gate.touch()
    assert [crew.ended(task_id).status for task_id in extra.sent[:SLOTS]] == ["succeeded"] * SLOTS
    assert extra.waiting == 2
    press(flower, f"/api/worker/queue/add-consumer/celery@{name}", queue=extra.queue)
    extra.ends()


@pytest.mark.parametrize("pool", POOLS.values())
def test_a_worker_that_is_shut_down_finishes_what_runs_and_gives_the_rest_back(flower, crew, work, pool):
    leaving = f"leaving-{pool}"
    mine = work(f"queue.{leaving}")
    process = crew.hire(leaving, "--pool", pool, "--concurrency", "2", "--queues", mine.queue)
    mine.send(SLOTS + 2)
    mine.began(SLOTS)
    flower.knows(f"celery@{leaving}")
    with stopping(process):
        press(flower, f"/api/worker/shutdown/celery@{leaving}")
        eventually(lambda: "Taking no more tasks" in process.output and mine.waiting == 2)
        mine.gate.touch()
    assert [crew.ended(task_id).status for task_id in mine.sent[:SLOTS]] == ["succeeded"] * SLOTS
    assert mine.waiting == 2
    assert mine.begun.read_text() == "xx"


def test_a_signal_to_a_worker_that_is_shutting_down_puts_back_what_runs(flower, crew, work):
    mine = work("queue.hurried")
    process = crew.hire("hurried", "--concurrency", "1", "--queues", mine.queue)
    mine.send()
    mine.began(1)
    flower.knows("celery@hurried")
    with stopping(process):
        press(flower, "/api/worker/shutdown/celery@hurried")
        eventually(lambda: "Taking no more tasks" in process.output)
        process.signal(signal.SIGTERM)
    assert mine.waiting == 1


def test_a_pool_that_may_scale_itself_grows_when_there_is_work_and_further_when_told_so(flower, crew, work):
    env = {name: value for name, value in crew.env.items() if name != "HOWL_DATABASE_URL"}
    words = ("-n", "elastic", "--autoscale=2,1", "-Q", "queue.elastic", "--without-gossip", "--without-mingle")
    process = crew.run("-A", "howl", "worker", *words, env=env, program=CELERY)
    mine = work("queue.elastic")
    mine.send(4)
    mine.began(2)
    flower.knows("celery@elastic")
    press(flower, "/api/worker/pool/autoscale/celery@elastic", min=1, max=3)
    mine.began(3)
    mine.ends()
    assert process.popen.poll() is None
