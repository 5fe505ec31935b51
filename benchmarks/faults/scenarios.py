"""The scenarios: each injects faults and returns an account, of which HOWL promises that some counts are zero."""

import base64
import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psycopg

from benchmarks.faults.ground import Account, Ground, children, strike
from benchmarks.faults.log import taken_in
from benchmarks.faults.proxy import ANSWERS, REQUESTS, Proxy
from howl.celery import create_app
from howl.connections import postgres
from howl.embedded.nats import Nats
from howl.embedded.valkey import Valkey
from howl.submission import TaskRequest, submit
from tests.helpers.support import PATIENCE, Process, eventually


@dataclass(frozen=True)
class Scenario:
    """A scenario: its function, the sizes of its short and full run, and the counts that must be zero."""

    run: Callable[..., Account]
    short: dict[str, int]
    full: dict[str, int]
    zero: tuple[str, ...]

    def broken_promises(self, account: Account) -> dict[str, int]:
        """Return the counts that should be zero and are not."""
        return {name: getattr(account, name) for name in self.zero if getattr(account, name)}


def mains_killed(ground: Ground, *, tasks: int, kills: int) -> Account:
    """Kill worker mains (kill -9) at random times under load; start the same name again at once."""
    ground.server()
    workers = {name: ground.worker(name) for name in ("w1", "w2")}
    for number in range(kills):
        name = ground.random.choice(list(workers))
        ground.awaited(workers[name], " ready.")
        ground.publish(tasks // kills, 0.1)
        if number % 2:
            time.sleep(ground.random.uniform(0, 1))  # whatever it is doing then
        else:
            ground.wait_for_work(name)
            time.sleep(ground.random.uniform(0, 0.2))
        ground.kill(workers[name], name)
        workers[name] = ground.worker(name, wait=False)
    return ground.account()


def children_killed(ground: Ground, *, tasks: int, kills: int) -> Account:
    """Kill (kill -9) one pool child, all of them, or a main whose children live on, in turn."""
    ground.server()
    worker = ground.worker("w1")
    for number in range(kills):
        time.sleep(ground.random.uniform(0.5, 1.0))  # time to replace those killed before
        ground.publish(tasks // kills, 0.1)
        ground.wait_for_work("w1")
        time.sleep(ground.random.uniform(0, 0.2))
        worker = _kill_some(ground, worker, number % 3)
    return ground.account()


def _kill_some(ground: Ground, worker: Process, whom: int) -> Process:
    if whom == 2:
        ground.kill(worker, "w1")
        return ground.worker("w1")
    pids = children(worker.pid)
    chosen = [ground.random.choice(pids)] if whom == 0 else pids
    held = ground.held("w1")  # read before the kill as well: their parent, which lives, puts back what they ran
    strike(chosen)
    ground.struck("w1", set(chosen), held)
    return worker


def worker_stopped(ground: Ground, *, tasks: int, stops: int) -> Account:
    """Stop a worker for longer than the lease, then continue it: what it reports late must not count."""
    ground.server()
    workers = {name: ground.worker(name) for name in ("w1", "w2")}
    for _ in range(stops):
        ground.publish(tasks // stops, ground.settings.lease / 2)
        name = eventually(partial(_stopped_at_work, ground, workers))
        ground.struck(name, set(children(workers[name].pid)))
        time.sleep(2 * ground.settings.lease + 1)
        eventually(partial(_holds_nothing, ground, name))
        workers[name].signal(signal.SIGCONT)
    return ground.account()


def _stopped_at_work(ground: Ground, workers: dict[str, Process]) -> str | None:
    """Stop a worker that holds a task that has begun, and return its name; None if there is none now."""
    for name, worker in workers.items():
        worker.signal(signal.SIGSTOP)
        pids = set(children(worker.pid))
        if ground.held(name) & {line.task_id for line in ground.diary.lines() if line.pid in pids}:
            return name
        worker.signal(signal.SIGCONT)
    return None


def _holds_nothing(ground: Ground, name: str) -> bool:
    return not ground.held(name)


def task_outlasts_lease(ground: Ground, *, tasks: int) -> Account:
    """Run tasks three times longer than the lease, with an idle worker present."""
    ground.server()
    ground.worker("w1"), ground.worker("w2")
    ground.publish(tasks, 0)
    for _ in range(tasks):
        ground.task_ids.append(str(uuid.uuid4()))
        arguments = (str(ground.diary.path), 3 * ground.settings.lease)
        ground.client.send_task("bench.diary", arguments, task_id=ground.task_ids[-1])
    return ground.account(patience=6 * ground.settings.lease + 10)


def connection_cut(ground: Ground, *, tasks: int, cuts: int, pool: str = "prefork") -> Account:
    """Cut every connection of a worker under load, after losing the data to Redis or from it, in turn."""
    ground.server()
    with Proxy(ground.settings.redis()) as proxy:
        ground.worker("w1", "--pool", pool, "--concurrency", "4", redis_url=proxy.url)
        for number in range(cuts):
            ground.publish(tasks // cuts, 0.05, countdown=3.0)
            time.sleep(ground.random.uniform(0.05, 0.5))
            lost, after = (REQUESTS, ANSWERS)[number % 2], ground.random.uniform(0.002, 0.05)
            eventually(partial(proxy.cut, lost, after))  # a worker that is just reconnecting has nothing to cut
            ground.faults += 1
        return ground.account()


def connection_of_threads_cut(ground: Ground, *, tasks: int, cuts: int) -> Account:
    """Do the same with a pool of threads, which run what they were given even if Celery forgets it."""
    return connection_cut(ground, tasks=tasks, cuts=cuts, pool="threads")


def redis_forgets(ground: Ground, *, tasks: int, times: int) -> Account:
    """Kill Redis, lose its last second, and keep it down for longer than the lease; submitted tasks must all end."""
    ground.server()
    ground.worker("w1"), ground.worker("w2")
    for _ in range(times):
        _submit(ground, tasks // times // 2)
        kept = Kept(ground.log.size, len(ground.task_ids))
        then = time.monotonic()
        _submit(ground, tasks // times // 2)
        time.sleep(max(0.0, then + 1 - time.monotonic()))
        ground.faults += 1
        _lose_what_came_after(ground, kept, away=ground.settings.lease + 1)
    return ground.account(patience=30 + 3 * ground.settings.push_again_after)


@dataclass(frozen=True)
class Kept:
    """The state that Redis keeps: bytes of its log, and tasks submitted by then."""

    log: int
    tasks: int


def _submit(ground: Ground, count: int) -> None:
    app = create_app(ground.settings.model_copy(update={"task_modules": ("benchmarks.tasks",)}))
    app.loader.import_default_modules()
    with postgres.session(ground.settings.database()) as session:
        for _ in range(count):
            arguments = [str(ground.diary.path), ground.random.uniform(0, 0.3)]
            ground.task_ids.append(submit(TaskRequest(name="bench.diary", args=arguments), session, app))
    app.close()


def _lose_what_came_after(ground: Ground, kept: Kept, away: float) -> None:
    server = ground.stack.redis
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    lost = ground.log.lose(kept.log)
    time.sleep(away)
    ground.forgotten += _forgotten(ground, kept, lost)
    ground.witness.forget_what_redis_lost()
    server.start()
    ground.log.keep_whole()


def _forgotten(ground: Ground, kept: Kept, lost: bytes) -> Counter[str]:
    """Count how often each message was claimed in the lost second: it is on its queue again, or is pushed again.

    Not only those that had begun by now count: a worker whose loop waits for Redis begins the rest when Redis is back,
    a moment before it learns that these claims are forgotten.
    """
    taken = taken_in(lost, ground.namespace.key("claims:"))
    # A task that Redis does not know and whose end is recorded stays ended.
    return taken - Counter(ground.ended(ground.task_ids[kept.tasks :]))


def servers_restarted(ground: Ground, *, tasks: int, restarts: int) -> Account:
    """Stop `howl server`, Redis and NATS, and start them again, in turn under load, as for an upgrade.

    `wrong` counts servers that did not exit with status 0, and workers without a heartbeat after the last restart.
    """
    server, unwell = ground.server(), 0
    ground.worker("w1"), ground.worker("w2")
    for number in range(restarts):
        _submit(ground, tasks // restarts)
        time.sleep(ground.random.uniform(0, 0.3))
        if number % 3 == 0:
            server.signal(signal.SIGTERM)
            unwell += server.wait() != 0
            server = ground.server()
        else:
            _restart(ground, (ground.stack.redis, ground.stack.nats)[number % 3 - 1])
        ground.faults += 1
    return ground.account(wrong=unwell + _unheard(ground, {"w1", "w2"}))


def _restart(ground: Ground, server: Valkey | Nats) -> None:
    server.stop()
    server.start()
    ground.log.keep_whole()


def _unheard(ground: Ground, workers: set[str]) -> int:
    """Count the workers from which no heartbeat comes."""
    query = "SELECT worker_id FROM workers WHERE last_heartbeat_at > %s"
    with psycopg.connect(ground.settings.database(), autocommit=True) as connection:
        now = connection.execute("SELECT now()").fetchone()
        deadline = time.monotonic() + PATIENCE  # a worker retries NATS now and then
        while silent := workers - {worker_id for (worker_id,) in connection.execute(query, now)}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    return len(silent)


def scripts_flushed(ground: Ground, *, tasks: int, flushes: int) -> Account:
    """Flush Redis's scripts under load."""
    ground.server()
    ground.worker("w1")
    for _ in range(flushes):
        ground.publish(tasks // flushes, 0.02)
        time.sleep(0.1)
        ground.redis.script_flush()
        ground.faults += 1
    return ground.account()


def recorder_killed(ground: Ground, *, tasks: int, kills: int) -> Account:
    """Kill a recorder between the commit of a batch and its confirmation; the next one records each end once."""
    ground.worker("w1")
    for _ in range(kills):
        recorder = ground.start("python", "-m", "benchmarks.faults.dying_recorder")
        ground.publish(tasks // kills, 0)
        assert recorder.wait() == -signal.SIGKILL, recorder.output
        ground.faults += 1
    ground.server()
    ground.wait_for_ends(30)
    with psycopg.connect(ground.settings.database()) as connection:
        query = "SELECT count(*) - count(DISTINCT task_id) FROM task_events WHERE kind = 'succeeded'"
        row = connection.execute(query).fetchone()
    return ground.account(wrong=row[0] if row else 0)


def garbage(ground: Ground, *, messages: int, neighbours: int) -> Account:
    """Mix unreadable messages with sound ones; `wrong` counts those not set aside, and values that were changed."""
    queue = ground.settings.key("celery")
    for number in range(messages):
        ground.redis.lpush(queue, _garbage(number))
        ground.faults += 1
        if number % (messages // neighbours) == 0:
            ground.task_ids.append(str(uuid.uuid4()))
            ground.client.send_task("tests.echo", (VALUE,), task_id=ground.task_ids[-1])
    ground.server()
    ground.worker("w1")
    ground.wait_for_ends(30)
    eventually(lambda: ground.redis.llen(queue) == 0)
    account_now = ground.account()
    aside = ground.redis.llen(ground.namespace.key("unreadable"))
    refused = ground.witness.refused
    with psycopg.connect(ground.settings.database()) as connection:
        query = "SELECT result::text FROM tasks WHERE task_id = ANY(%s)"
        results = [json.loads(value) for (value,) in connection.execute(query, (ground.task_ids,)) if value]
    changed = len(ground.task_ids) - sum(1 for value in results if value == VALUE)
    return Account(**{**vars(account_now), "wrong": abs(messages - aside - refused) + changed})


#: A value that careless JSON readers change.
VALUE = {"big": 2**60 + 1, "none": [], "empty": {}, "text": "\u2603\n"}


def _garbage(number: int) -> bytes:
    body = base64.b64encode(b"[" * 2000 + b"]" * 2000).decode()
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"not JSON \xff\x00 %d" % number,
        lambda: json.dumps({"body": "", "headers": {"id": str(uuid.uuid4())}, "number": number}).encode(),
        lambda: b"[" * 2000 + b"]" * 2000,
        lambda: json.dumps({"body": number, "headers": None, "properties": None}).encode(),
        lambda: b"[%d]" % number,
        lambda: json.dumps({
            "body": body, "content-encoding": "utf-8", "content-type": "application/json",
            "headers": {"id": str(uuid.uuid4()), "task": "tests.echo", "lang": "py"},
            "properties": {"body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "celery"},
                           "delivery_tag": str(number), "correlation_id": str(number)},
        }).encode(),
    )  # fmt: skip
    if number % 500 == 7:
        return b"x" * (20 << 20)
    return kinds[number % len(kinds)]()


def same_name(ground: Ground, *, tasks: int) -> Account:
    """Run two workers of one name: both work, and one warning is logged; `wrong` counts what differs."""
    ground.server()
    first, second = ground.worker("w1"), ground.worker("w1")
    ground.publish(tasks, 0.1)
    ground.wait_for_ends(30)
    time.sleep(ground.settings.lease)  # time for both to be seen renewing their leases
    busy = {line.pid for line in ground.diary.lines()}
    idle = sum(1 for worker in (first, second) if not busy & set(children(worker.pid)))
    warnings = sum(process.output.count("the same name") for process in ground.processes)
    return ground.account(wrong=idle + abs(warnings - 1))


NEVER = ("lost", "twice", "stranded", "dead", "unseen", "wrong")
UNSEEN_BY_CELERY = (*NEVER, "extra", "stale")

SCENARIOS = {
    "mains-killed": Scenario(mains_killed, {"tasks": 120, "kills": 3}, {"tasks": 10_000, "kills": 200},
                             (*NEVER, "extra", "stale")),
    "children-killed": Scenario(children_killed, {"tasks": 60, "kills": 3}, {"tasks": 1500, "kills": 30},
                                (*NEVER, "extra", "stale")),
    "worker-stopped": Scenario(worker_stopped, {"tasks": 8, "stops": 1}, {"tasks": 100, "stops": 10},
                               (*NEVER, "extra")),
    "task-outlasts-lease": Scenario(task_outlasts_lease, {"tasks": 2}, {"tasks": 8}, UNSEEN_BY_CELERY),
    "connection-cut": Scenario(connection_cut, {"tasks": 200, "cuts": 10}, {"tasks": 4000, "cuts": 200},
                               UNSEEN_BY_CELERY),
    "connection-of-threads-cut": Scenario(
        connection_of_threads_cut, {"tasks": 200, "cuts": 10}, {"tasks": 4000, "cuts": 200}, UNSEEN_BY_CELERY
    ),
    "redis-forgets": Scenario(redis_forgets, {"tasks": 60, "times": 1}, {"tasks": 1000, "times": 10},
                              (*NEVER, "extra")),
    "servers-restarted": Scenario(servers_restarted, {"tasks": 60, "restarts": 3}, {"tasks": 3000, "restarts": 60},
                                  UNSEEN_BY_CELERY),
    "scripts-flushed": Scenario(scripts_flushed, {"tasks": 100, "flushes": 5}, {"tasks": 2000, "flushes": 50},
                                UNSEEN_BY_CELERY),
    "recorder-killed": Scenario(recorder_killed, {"tasks": 20, "kills": 1}, {"tasks": 500, "kills": 20},
                                UNSEEN_BY_CELERY),
    "garbage": Scenario(garbage, {"messages": 60, "neighbours": 10}, {"messages": 1000, "neighbours": 100},
                        UNSEEN_BY_CELERY),
    "same-name": Scenario(same_name, {"tasks": 40}, {"tasks": 400}, UNSEEN_BY_CELERY),
}  # fmt: skip
