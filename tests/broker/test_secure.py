"""Workers with a narrow credential over TLS do all that workers do, and Redis never has to refuse them anything."""

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from celery import chord, group
from sqlalchemy import select

from howl import remote_shutdown
from howl.config import load_settings
from howl.connections import postgres
from howl.embedded.isolation import clean_environment
from howl.embedded.stack import Stack
from howl.models import Artifact
from howl.outcomes import ChordCreated, encode, failure
from howl.provision.permissions import Grant
from tests.helpers.crew import ROOT, TASKS, Crew
from tests.helpers.secured import SERVER, Secured
from tests.helpers.support import Process, eventually

WORKER = "worker"
_numbers = count(1)


class SecuredCrew(Crew):
    """A crew whose server and worker each have a user of their own, and the worker the queue `celery` alone."""

    def __init__(self, stack: Stack, secured: Secured, name: str, pool: str, folder: Path) -> None:
        super().__init__(stack, name, pool, folder)
        self.redis.close()
        self.app.close()
        self.secured = secured
        kept = {name: getattr(self.settings, name) for name in ("key_prefix", "subject_prefix", "home", "database_url")}
        urls = {"redis_url": secured.redis_url(SERVER), "nats_url": secured.nats_url(SERVER)}
        self.adopt(load_settings(**kept, **urls, ca_file=secured.ca, lease=4.0))

    def start(self) -> None:
        server = self.run("server", env=self._env(SERVER) | {"HOWL_DATABASE_URL": self.settings.database()})
        eventually(lambda: "server is up" in server.output or server.popen.poll() is not None)
        assert server.popen.poll() is None, server.output
        self.send("echo")  # which writes down that there is such a queue
        self.worker = self.start_worker("worker-1")

    def start_worker(self, name: str) -> Process:
        options = ("--pool", self.pool, "--concurrency", "2")
        worker = self.run("worker", "--name", name, *options, env=self._env(WORKER))
        eventually(lambda: " ready." in worker.output or worker.popen.poll() is not None)
        assert worker.popen.poll() is None, worker.output
        return worker

    def _env(self, user: str) -> dict[str, str]:
        names = ("key_prefix", "subject_prefix", "home", "lease")
        given = {f"HOWL_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        urls = {"HOWL_REDIS_URL": self.secured.redis_url(user), "HOWL_NATS_URL": self.secured.nats_url(user)}
        urls["HOWL_CA_FILE"] = str(self.secured.ca)
        return clean_environment(**given, **urls, HOWL_TASK_MODULES=TASKS, PYTHONPATH=str(ROOT))

    async def _delete_streams(self) -> None:
        """The server it was on is gone with the test."""


@pytest.fixture(scope="module", params=["prefork", "threads"])
def crew(request: pytest.FixtureRequest, stack: Stack) -> Iterator[SecuredCrew]:
    """A server and one worker, each with its own credential."""
    name = f"secured{next(_numbers)}"
    folder = Path(tempfile.mkdtemp(prefix="secured-", dir=stack.home))
    secured = Secured(folder, f"{name}:", name, [Grant(WORKER, ("celery",))])
    secured.start()
    made = SecuredCrew(stack, secured, name, request.param, folder)
    try:
        made.start()
        yield made
    finally:
        made.end()
        secured.stop()


def namespace(crew: SecuredCrew, name: str) -> str:
    """A key of the worker's own namespace."""
    return crew.key(f"_by:{WORKER}:{name}")


def test_a_success_and_a_failure_are_recorded(crew: SecuredCrew) -> None:
    done, failed = crew.send("echo", 7), crew.send("fail")
    row = crew.ended(done)
    assert (row.status, row.result, row.worker_id) == ("succeeded", 7, "worker-1")
    assert crew.ended(failed).error_message == "as told"


def test_a_file_that_a_task_leaves_is_kept(crew: SecuredCrew) -> None:
    task_id = crew.send("leave_bytes", "file.bin", 2_000_000)
    assert crew.ended(task_id).status == "succeeded"
    left = select(Artifact.name, Artifact.size, Artifact.status).where(Artifact.task_id == task_id)

    def kept() -> bool:
        with postgres.session(crew.settings.database()) as opened:
            return opened.execute(left).all() == [("file.bin", 2_000_000, "kept")]

    eventually(kept)


def test_a_task_that_retries_publishes_itself_again_and_succeeds(crew: SecuredCrew) -> None:
    task_id = crew.send("retry")
    assert crew.ended(task_id).result == 1
    # Either may be settled first.
    eventually(lambda: sorted(crew.kinds(task_id)) == ["retrying", "succeeded"])


def test_a_chord_that_a_client_made_runs_its_body(crew: SecuredCrew) -> None:
    echo, total = crew.app.tasks["endings.echo"], crew.app.tasks["endings.total"]
    body = chord([echo.s(number) for number in range(3)], total.s(), app=crew.app).apply_async()
    assert crew.ended(body.id).result == 3


def test_a_chord_that_a_worker_made_runs_its_body(crew: SecuredCrew) -> None:
    body_id = crew.finished(crew.send("make_chord", 4)).result
    assert crew.ended(body_id).result == 6


def forged_chord(crew: SecuredCrew, part: str, name: str, **options: Any) -> ChordCreated:
    """A chord whose one part has ended, as whoever has the worker's credential could write it."""
    group_id, body_id = str(uuid.uuid4()), str(uuid.uuid4())
    header = [[group_id, None], [[[part, None], None]]]
    body = crew.app.signature(name, options={"task_id": body_id, **options})
    return ChordCreated(group_id=group_id, parts=[part], header=header, body=dict(body))


def tell(crew: SecuredCrew, chord_: ChordCreated) -> None:
    with crew.secured.client(WORKER) as thief:
        thief.xadd(namespace(crew, "outcomes"), {"outcome": encode(chord_)})


def test_a_forged_chord_puts_nothing_on_a_queue_that_was_not_granted(crew: SecuredCrew) -> None:
    part = crew.ended(crew.send("echo", 2)).task_id
    forged = forged_chord(crew, part, "endings.total", queue="other")
    tell(crew, forged)
    eventually(lambda: f"{forged.group_id} has no body" in crew.processes[0].output)
    assert "Redis user worker does not reach queue other" in crew.processes[0].output
    assert crew.redis.llen(crew.key("other")) == 0
    allowed = forged_chord(crew, part, "endings.total", queue="celery")
    tell(crew, allowed)
    assert crew.ended(allowed.body["options"]["task_id"]).result == 2


def test_an_error_callback_that_a_worker_wrote_does_not_run_in_the_server(crew: SecuredCrew, tmp_path: Path) -> None:
    failed = crew.ended(crew.send("fail")).task_id
    callback = crew.app.signature("endings.on_error", args=[str(tmp_path / "ran")], immutable=True)
    forged = forged_chord(
        crew, failed, "endings.total", queue="celery", link_error=[dict(callback.set(queue="celery"))]
    )
    tell(crew, forged)
    assert crew.ended(forged.body["options"]["task_id"]).status == "failed"
    pid = int(eventually(lambda: (tmp_path / "ran").exists() and (tmp_path / "ran").read_text()))
    assert pid != crew.processes[0].pid


def test_a_worker_that_spoils_its_outcomes_keeps_no_other_from_being_recorded(crew: SecuredCrew) -> None:
    key = namespace(crew, "outcomes")
    task_id = str(uuid.uuid4())
    with crew.secured.client(WORKER) as thief:
        with thief.pipeline(transaction=False) as pipe:
            pipe.pexpire(key, 0).lpush(key, "nonsense").execute()
        crew.app.backend.append(failure(task_id, "FAILURE", ValueError("told by somebody else")))
        assert crew.finished(task_id).error_message == "told by somebody else"
        thief.ltrim(key, 1, 0)
    assert crew.ended(crew.send("echo", 3)).result == 3


def test_a_worker_with_a_credential_adds_nothing_to_a_chord(crew: SecuredCrew) -> None:
    body = chord([crew.app.tasks["endings.add_to_chord"].si(1)], crew.app.tasks["endings.echo"].s()).apply_async()
    assert "may add nothing to a chord that may be another's" in crew.ended(body.id).error_message


def test_a_group_is_done(crew: SecuredCrew) -> None:
    echo = crew.app.tasks["endings.echo"]
    results = group([echo.s(number) for number in range(4)], app=crew.app).apply_async()
    assert [crew.ended(result.id).result for result in results.results] == [0, 1, 2, 3]


def test_a_task_of_any_priority_is_done(crew: SecuredCrew) -> None:
    sent = {crew.send("echo", priority, priority=priority): priority for priority in (0, 3, 6, 9)}
    assert [crew.ended(task_id).result for task_id in sent] == [0, 3, 6, 9]


def test_a_task_for_much_later_is_parked_and_comes_back_in_time(crew: SecuredCrew) -> None:
    later, soon = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) + timedelta(seconds=1)
    task_id = crew.send("echo", 1, eta=later)
    (message,) = eventually(lambda: crew.redis.zrange(namespace(crew, "parked"), 0, -1))
    with crew.redis.pipeline() as pipe:
        pipe.zrem(namespace(crew, "parked"), message)
        sooner = message.replace(later.isoformat().encode(), soon.isoformat().encode())
        pipe.zadd(namespace(crew, "parked"), {sooner: int(soon.timestamp() * 1000)})
        pipe.execute()
    assert crew.ended(task_id).result == 1


def test_a_revoked_task_never_starts(crew: SecuredCrew, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    task_id = crew.send("requeue_once", str(starts), eta=datetime.now(UTC) + timedelta(seconds=6))
    crew.redis.xadd(crew.key("revoked"), {"task_id": task_id})
    assert crew.ended(task_id).status == "cancelled"
    assert not starts.exists()


def test_a_worker_answers_remote_control(crew: SecuredCrew) -> None:
    answers = eventually(lambda: crew.app.control.inspect(timeout=2).ping())
    assert answers == {"celery@worker-1": {"ok": "pong"}}


def test_a_task_assigned_to_the_worker_by_name_is_done_by_it(crew: SecuredCrew) -> None:
    task_id = crew.app.tasks["endings.echo"].apply_async([1], queue="worker.worker-1").id
    assert crew.ended(task_id).worker_id == "worker-1"


def test_a_message_that_nobody_can_read_is_set_aside_where_the_worker_may_write(crew: SecuredCrew) -> None:
    crew.push(b"no json")
    assert eventually(lambda: crew.redis.lrange(namespace(crew, "unreadable"), 0, -1)) == [
        crew.key("celery").encode() + b"\nno json"
    ]


def test_scripts_that_redis_has_forgotten_are_loaded_again_by_the_server(crew: SecuredCrew) -> None:
    crew.redis.script_flush()
    assert crew.ended(crew.send("echo", 5)).result == 5


def test_what_a_killed_worker_held_is_done_by_another(crew: SecuredCrew, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    crew.worker.signal(signal.SIGSTOP)
    try:
        doomed = crew.start_worker("worker-2")
        task_id = crew.send("wait", str(begun), str(go_on))
        eventually(begun.exists)
        os.killpg(doomed.pid, signal.SIGKILL)
    finally:
        crew.worker.signal(signal.SIGCONT)
    go_on.touch()
    row = crew.ended(task_id)
    assert (row.status, row.worker_id, len(begun.read_text())) == ("succeeded", "worker-1", 2)


def test_a_worker_told_to_drain_says_so_also_while_it_drains(crew: SecuredCrew, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    leaving = crew.start_worker("worker-2")
    task_id = crew.app.tasks["endings.wait"].apply_async([str(begun), str(go_on)], queue="worker.worker-2").id
    eventually(begun.exists)
    eventually(lambda: present(crew, "worker-2"))
    assert told(crew, "worker-2") == {"answered": True, "running": 1}
    assert eventually(lambda: (again := told(crew, "worker-2"))["answered"] and again)["running"] == 1
    go_on.touch()
    assert crew.ended(task_id).status == "succeeded"
    assert leaving.wait() == 0


def present(crew: SecuredCrew, worker_id: str) -> bool:
    with postgres.session(crew.settings.database()) as opened:
        return worker_id in remote_shutdown.present(opened)


def told(crew: SecuredCrew, worker_id: str) -> dict[str, Any]:
    with postgres.session(crew.settings.database()) as opened:
        (row,) = remote_shutdown.dismiss([worker_id], "drain", opened, crew.app)
    return {name: row[name] for name in ("answered", "running")}


def test_a_worker_whose_queue_was_not_granted_says_so_at_once(crew: SecuredCrew) -> None:
    before = crew.secured.denied()
    env = crew._env(WORKER)
    refused = crew.run("worker", "--name", "worker-3", "--queues", "other", env=env)
    assert refused.wait() != 0
    assert "Redis user worker does not reach other" in refused.output
    assert len(crew.secured.denied()) == len(before) + 1
    crew.secured.forget_denied()


def test_after_all_this_redis_has_refused_nothing(crew: SecuredCrew) -> None:
    crew.worker.signal(signal.SIGTERM)
    assert crew.worker.wait() == 0
    assert crew.secured.denied() == []
    logs = [process.output for process in crew.processes]
    assert not [line for log in logs for line in log.splitlines() if "NOPERM" in line or "ermission" in line]
    # Celery logs with its traceback what a task raises.
    raised = ("\nValueError: as told", "\nhowl.errors.NotGranted: ")
    assert [log for log in logs if log.count("Traceback") != sum(map(log.count, raised))] == []


def test_a_worker_whose_credential_is_for_every_queue_is_refused_nothing(stack: Stack) -> None:
    name = f"secured{next(_numbers)}"
    folder = Path(tempfile.mkdtemp(prefix="secured-", dir=stack.home))
    secured = Secured(folder, f"{name}:", name, [Grant(WORKER)])
    secured.start()
    made = SecuredCrew(stack, secured, name, "prefork", folder)
    try:
        made.start()
        assert made.ended(made.send("echo", 7)).result == 7
        assert made.finished(made.send("make_chord", 4)).result
        made.worker.signal(signal.SIGTERM)
        assert made.worker.wait() == 0
        assert secured.denied() == []
    finally:
        made.end()
        secured.stop()
