"""How a task's run ends and who says so: every way, in every pool, as it stands on record afterwards."""

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group

from howl.broker.message import task_headers
from howl.celery import create_app
from howl.connections import postgres
from howl.outcomes import JOIN_ALL, PART_STATUS
from howl.submission import TaskRequest, submit
from tests.helpers.support import eventually


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def crew(request, enlist):
    """A server and one worker."""
    return enlist(request.param)


@pytest.fixture
def prefork(crew):
    """A crew whose tasks run in processes of their own, and can be ended without it."""
    if crew.pool != "prefork":
        pytest.skip("only a process can be killed")
    return crew


@pytest.fixture
def ledger(tmp_path):
    """A file in which a task counts its starts."""
    return tmp_path / "starts"


# --- plain ends ------------------------------------------------------------------------------------------------------


def test_a_success_is_recorded_once(crew):
    task_id = crew.send("echo", 7)
    row = crew.ended(task_id)
    assert (row.status, row.result, row.attempts, row.worker_id) == ("succeeded", 7, 1, "w1")
    assert crew.kinds(task_id) == ["succeeded"]


def test_a_failure_is_recorded_once_with_its_error(crew):
    task_id = crew.send("fail")
    row = crew.ended(task_id)
    assert (row.status, row.error_type, row.error_message) == ("failed", "ValueError", "as told")
    assert crew.kinds(task_id) == ["failed"]


def test_a_failed_task_that_is_sent_again_under_its_id_ends_as_it_ends_then(crew, ledger):
    task_id = crew.send("fail_once", str(ledger))
    assert crew.ended(task_id).status == "failed"
    crew.send("fail_once", str(ledger), task_id=task_id)
    row = eventually(lambda: (found := crew.row(task_id)).status == "succeeded" and found)
    assert (row.result, row.error, row.error_type, row.traceback) == ("done", None, None, None)


@pytest.mark.parametrize("state", ["FAILURE", "RETRY"])
def test_a_task_that_called_itself_failed_and_ends_well_has_succeeded(crew, state):
    row = crew.ended(crew.send("change_mind", state))
    assert (row.status, row.result, row.error) == ("succeeded", "done", None)


def test_the_parts_of_a_chord_are_recorded_and_its_body_runs(crew):
    parts = [crew.app.tasks["endings.echo"].s(number) for number in range(4)]
    body = chord(parts, crew.app.tasks["endings.total"].s(), app=crew.app).apply_async()
    assert crew.ended(body.id).result == 6
    assert [crew.kinds(part.id) for part in body.parent.results] == [["succeeded"]] * 4


def test_a_task_replaced_by_a_chord_ends_as_its_body(crew):
    """Also one that was submitted, whose id is on record and in flight all the while."""
    request = TaskRequest(name="endings.replace_by_chord", args=[4])
    with postgres.session(crew.settings.database()) as opened:
        submitted = submit(request, opened, crew.app)
    for task_id in (submitted, crew.send("replace_by_chord", 4)):
        assert crew.ended(task_id).result == 6
        assert crew.kinds(task_id).count("succeeded") == 1
    eventually(lambda: not crew.redis.hexists(crew.key("inflight"), submitted))


def test_a_body_that_joins_all_is_told_what_became_of_a_part_that_failed(crew):
    tasks = crew.app.tasks
    parts = [tasks["endings.echo"].s(1), tasks["endings.fail"].si()]
    body = chord(parts, tasks["endings.echo"].s().set(headers=JOIN_ALL)).apply_async()
    one, other = crew.ended(body.id).result
    assert one == 1
    assert other == {PART_STATUS: "failed", "worker_id": "w1", "error_type": "ValueError", "error_message": "as told"}


def test_a_result_larger_than_an_outcome_may_be_fails_the_task_once(crew):
    task_id = crew.send("large")
    assert crew.ended(task_id).error_type == "howl.errors.OutcomeTooLarge"
    assert crew.kinds(task_id) == ["failed"]


def test_a_soft_limit_fails_the_task(prefork):
    task_id = prefork.send("soft_limit")
    assert prefork.ended(task_id).error_type == "billiard.exceptions.SoftTimeLimitExceeded"
    assert prefork.kinds(task_id) == ["failed"]


def test_a_task_that_catches_its_soft_limit_ends_as_it_says(prefork):
    assert prefork.ended(prefork.send("soft_limit_caught")).result == "in time"


# --- ends that the worker itself stores ------------------------------------------------------------------------------


def test_an_expired_task_never_starts(crew, ledger):
    task_id = crew.send("requeue_once", str(ledger), expires=datetime.now(UTC) - timedelta(seconds=1))
    assert crew.ended(task_id).status == "expired"
    assert crew.kinds(task_id) == ["expired"]
    assert not ledger.exists()


def test_a_revoked_id_never_starts(crew, ledger):
    crew.redis.xadd(crew.key("revoked"), {"task_id": "revoked-before"})
    crew.ended(crew.send("echo"))  # the turn that took it brought the revoked ids as well
    task_id = crew.send("requeue_once", str(ledger), task_id="revoked-before")
    assert crew.ended(task_id).status == "cancelled"
    assert crew.kinds(task_id) == ["cancelled"]
    assert not ledger.exists()


def test_a_task_revoked_with_terminate_is_cancelled_and_its_late_outcome_dropped(prefork, tmp_path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    task_id = prefork.send("wait", str(begun), str(go_on))
    eventually(begun.exists)
    prefork.app.control.revoke(task_id, terminate=True)
    assert prefork.ended(task_id).status == "cancelled"
    go_on.touch()
    prefork.ended(prefork.send("echo"))
    assert prefork.kinds(task_id) == ["cancelled"]


def test_a_rejected_task_fails(crew):
    task_id = crew.send("reject")
    row = crew.ended(task_id)
    assert (row.status, row.error_type) == ("failed", "celery.exceptions.Reject")
    assert crew.kinds(task_id) == ["failed"]


def test_a_requeued_task_runs_again_and_only_its_last_run_ends(crew, ledger):
    task_id = crew.send("requeue_once", str(ledger))
    assert crew.ended(task_id).result == 2
    assert crew.kinds(task_id) == ["requeued", "succeeded"]
    assert crew.redis.hgetall(crew.key("deaths")) == {}


@pytest.mark.parametrize(("how", "told"), [("at once", [1, False]), ("rejected", [2, True])])
def test_a_requeued_task_knows_that_it_was_delivered_before(crew, ledger, how, told):
    assert crew.ended(crew.send("again", str(ledger), how)).result == told


def test_a_hard_limit_fails_the_task_once(prefork):
    task_id = prefork.send("hard_limit")
    assert prefork.ended(task_id).error_type == "billiard.exceptions.TimeLimitExceeded"
    prefork.ended(prefork.send("echo"))
    assert prefork.kinds(task_id) == ["failed"]


def test_a_hard_limit_without_acknowledgement_runs_the_task_again(prefork, ledger):
    task_id = prefork.send("hard_limit_again", str(ledger))
    assert prefork.ended(task_id).result == 2
    assert prefork.kinds(task_id) == ["requeued", "succeeded"]


# --- ends that are no ends, or nearly none ---------------------------------------------------------------------------


def test_a_retry_is_recorded_and_then_its_end(crew):
    task_id = crew.send("retry")
    row = crew.ended(task_id)
    assert (row.status, row.result, row.attempts, row.error_type) == ("succeeded", 1, 2, None)
    eventually(lambda: sorted(crew.kinds(task_id)) == ["retrying", "succeeded"])


def test_a_task_that_ignores_its_result_is_recorded_without_it(crew):
    task_id = crew.send("quiet")
    row = crew.ended(task_id)
    assert (row.status, row.result) == ("succeeded", None)
    assert crew.kinds(task_id) == ["succeeded"]


def test_a_failure_of_a_task_that_ignores_its_result_is_recorded(crew):
    row = crew.ended(crew.send("quiet_failure"))
    assert (row.status, row.error_message) == ("failed", "quietly")


def test_a_retry_of_a_task_that_ignores_its_result_settles(crew):
    task_id = crew.send("quiet_retry")
    row = crew.ended(task_id)
    assert (row.status, row.attempts) == ("succeeded", 2)
    eventually(lambda: sorted(crew.kinds(task_id)) in (["ended", "succeeded"], ["retrying", "succeeded"]))


def test_an_ignored_run_leaves_a_bare_end_and_no_outcome(crew):
    task_id = crew.send("ignore")
    eventually(lambda: crew.kinds(task_id) == ["ended"])
    crew.is_not_held(task_id)
    assert crew.row(task_id).status == "started"


def test_a_replaced_task_ends_as_its_replacement(crew):
    task_id = crew.send("replace", 5)
    assert crew.ended(task_id).result == 5
    eventually(lambda: sorted(crew.kinds(task_id)) == ["ended", "succeeded"])
    assert crew.row(task_id).status == "succeeded"


def test_a_failure_stored_by_hand_is_the_end_of_an_ignored_run(crew):
    task_id = crew.send("fail_by_hand")
    row = crew.ended(task_id)
    assert (row.status, row.error_type) == ("failed", "tests.ByHand")
    assert crew.kinds(task_id) == ["failed"]


def test_a_state_of_the_tasks_own_is_progress(crew):
    task_id = crew.send("report")
    assert crew.ended(task_id).result == "done"
    assert crew.kinds(task_id) == ["progress", "succeeded"]
    (progress,) = [event for event in crew.events(task_id) if event.kind == "progress"]
    assert (progress.data["state"], progress.data["result"]) == ("HALFWAY", {"done": 1})


# --- messages that are none ------------------------------------------------------------------------------------------


def test_an_unregistered_task_fails_and_says_so(crew):
    task_id = crew.app.send_task("endings.nobody_knows").id
    row = crew.ended(task_id)
    assert row.error_type == "celery.exceptions.NotRegistered"
    assert "does not know the task endings.nobody_knows: have the workers of its queue load" in row.error_message
    assert crew.kinds(task_id) == ["failed"]


def test_a_content_type_that_is_refused_fails_the_task(crew):
    task_id = crew.app.send_task("endings.echo", serializer="pickle").id
    assert crew.ended(task_id).error_type == "howl.errors.MessageRefused"
    assert crew.kinds(task_id) == ["failed"]


@pytest.mark.parametrize("body", ["{", "[" * 5000 + "]" * 5000, "[]", '"x"', "5"], ids=lambda text: text[:3])
def test_a_body_that_cannot_be_decoded_fails_the_task(crew, body):
    crew.push(_message(headers={"id": f"undecodable-{body[:3]}", "task": "endings.echo"}, body=body))
    assert crew.ended(f"undecodable-{body[:3]}").error_type == "howl.errors.MessageRefused"


def test_a_message_without_a_task_fails_under_its_id(crew):
    crew.push(_message(headers={"id": "no-task"}))
    assert crew.ended("no-task").error_type == "howl.errors.MessageRefused"


def test_a_message_without_properties_fails_under_its_id(crew):
    crew.push(json.dumps({"body": "W10=", "headers": {"id": "no-properties", "task": "endings.echo"}}).encode())
    assert crew.ended("no-properties").error_type == "howl.errors.MessageRefused"


UNREADABLE = {
    "not json": b"\xff{",
    "a list": b"[]",
    "nothing": b"",
    "2,000 levels": b'{"properties":' + b"[" * 2000 + b"]" * 2000 + b"}",
}
HEADERS = {"no id": {"task": "endings.echo"}, "an id that is a number": {"task": "endings.echo", "id": 7},
           "headers that are a list": ["id"]}  # fmt: skip


@pytest.mark.parametrize("what", [*UNREADABLE, *HEADERS])
def test_what_cannot_be_read_is_set_aside_whole_and_its_neighbours_are_done(crew, what):
    crew.redis.delete(crew.key("unreadable"))
    message = _message(headers=HEADERS[what]) if what in HEADERS else UNREADABLE[what]
    value = {"beyond a double": 2**53 + 1, "huge": 2**70, "empty": [], "nest": [[[{}]]]}
    before = crew.send("echo", value)
    crew.push(message)
    after = crew.send("echo", value)
    assert [crew.ended(before).result, crew.ended(after).result] == [value, value]
    aside = eventually(lambda: crew.redis.lrange(crew.key("unreadable"), 0, -1))
    assert crew.key("celery").encode() + b"\n" + message in aside


@pytest.mark.parametrize("task_id", [7, "", "x" * 300, "a\0b"], ids=["number", "empty", "long", "unstorable"])
def test_a_task_whose_end_could_not_be_recorded_never_runs(crew, ledger, task_id):
    crew.redis.delete(crew.key("unreadable"))
    headers = {"id": task_id, "task": "endings.lost"}
    crew.push(_message(headers=headers, body=json.dumps([[str(ledger), 0], {}, {}])))
    aside = eventually(lambda: crew.redis.lrange(crew.key("unreadable"), 0, -1))
    assert [json.loads(claim.partition(b"\n")[2])["headers"] for claim in aside] == [headers]
    assert not ledger.exists()


# --- Celery's first protocol -----------------------------------------------------------------------------------------


@pytest.fixture
def first_protocol(crew):
    """A client that speaks it."""
    app = create_app(crew.settings)
    app.conf.task_protocol = 1
    yield app
    app.close()


def test_a_task_of_the_first_protocol_is_done_and_recorded(crew, first_protocol):
    row = crew.ended(first_protocol.send_task("endings.echo", ["\u20ac"]).id)
    assert (row.status, row.result, row.worker_id) == ("succeeded", "\u20ac", "w1")
    row = crew.ended(first_protocol.send_task("endings.fail").id)
    assert (row.status, row.error_message) == ("failed", "as told")


def test_a_task_of_the_first_protocol_is_retried(crew, first_protocol):
    task_id = first_protocol.send_task("endings.retry").id
    assert crew.ended(task_id).status == "succeeded"
    eventually(lambda: sorted(crew.kinds(task_id)) == ["retrying", "succeeded"])


def test_a_task_of_the_first_protocol_waits_for_its_time_in_redis(crew, first_protocol):
    task_id = first_protocol.send_task("endings.echo", [7], countdown=3600).id
    claims = eventually(lambda: crew.redis.zrange(crew.key("parked"), 0, -1))
    assert [task_headers(json.loads(claim.partition(b"\n")[2]))["id"] for claim in claims] == [task_id]
    crew.redis.delete(crew.key("parked"))


# --- processes that die ----------------------------------------------------------------------------------------------


def test_a_task_whose_process_was_lost_runs_again(prefork, ledger):
    task_id = prefork.send("lost", str(ledger), 2)
    assert prefork.ended(task_id).result == 3
    assert prefork.kinds(task_id) == ["requeued", "requeued", "succeeded"]
    assert prefork.redis.hgetall(prefork.key("deaths")) == {}


def test_a_task_whose_process_was_lost_knows_that_it_was_delivered_before(prefork, ledger):
    assert prefork.ended(prefork.send("again", str(ledger), "lost")).result == [2, True]


def test_a_task_that_kills_its_process_is_dead_after_five_deaths_more(prefork, ledger):
    task_id = prefork.send("lost", str(ledger))
    _is_dead(prefork, task_id)
    assert len(ledger.read_text()) == 6


def test_a_retried_task_that_kills_its_process_is_dead_too(prefork):
    prefork.redis.hset(prefork.key("deaths"), "retried", 4)
    prefork.send("lost_after_a_retry", task_id="retried")
    row = prefork.ended("retried")
    assert (row.status, row.attempts, row.error_type) == ("dead", 2, "howl.errors.TaskDied")


def test_a_task_that_leaves_its_process_has_died_as_well(crew, ledger):
    crew.redis.hset(crew.key("deaths"), "leaving", 4)
    crew.send("exit", str(ledger), task_id="leaving")
    _is_dead(crew, "leaving")
    assert len(ledger.read_text()) == 2


def test_a_lost_task_that_must_not_run_again_fails(prefork):
    task_id = prefork.send("lost_for_good")
    row = prefork.ended(task_id)
    assert (row.status, row.error_type) == ("failed", "billiard.exceptions.WorkerLostError")
    assert prefork.kinds(task_id) == ["failed"]


def test_a_success_stored_before_its_process_died_stands(prefork, ledger):
    task_id = prefork.send("stored_then_lost", str(ledger))
    assert prefork.ended(task_id).result == 1
    prefork.ended(prefork.send("echo"))
    assert prefork.kinds(task_id) == ["succeeded"]
    assert len(ledger.read_text()) == 1


# --- acknowledged before their end -----------------------------------------------------------------------------------


def test_the_ends_of_tasks_acknowledged_early_are_recorded_each_once(crew):
    sent = [crew.send("early", number) for number in range(50)]
    assert [crew.ended(task_id).result for task_id in sent] == list(range(50))
    assert {tuple(kind for kind in crew.kinds(task_id) if kind != "ended") for task_id in sent} == {("succeeded",)}


def test_a_task_acknowledged_early_is_held_by_nobody_while_it_runs(crew, tmp_path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    task_id = crew.send("early_slow", str(begun), str(go_on))
    eventually(begun.exists)
    crew.is_not_held(task_id)
    go_on.touch()
    assert crew.ended(task_id).result == "done"


def test_a_failure_after_an_early_acknowledgement_is_recorded(crew):
    assert crew.ended(crew.send("early_failure")).error_message == "early"


def test_a_process_lost_after_an_early_acknowledgement_is_recorded(prefork):
    task_id = prefork.send("early_lost")
    assert prefork.ended(task_id).error_type == "billiard.exceptions.WorkerLostError"


# --- several ends, and ends for others -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["fail", "early_failure"])
def test_a_failing_chain_fails_to_its_end(crew, first):
    tasks = crew.app.tasks
    last = chain(tasks[f"endings.{first}"].si(), tasks["endings.echo"].si(1), tasks["endings.echo"].si(2)).apply_async()
    for link in (last, last.parent, last.parent.parent):
        assert crew.ended(link.id).status == "failed"
        assert [kind for kind in crew.kinds(link.id) if kind != "ended"] == ["failed"]


def test_a_chord_with_a_failing_part_fails_its_body(crew):
    tasks = crew.app.tasks
    body = chord([tasks["endings.echo"].s(1), tasks["endings.fail"].si()], tasks["endings.total"].s()).apply_async()
    assert crew.ended(body.id).error_type == "celery.exceptions.ChordError"


def test_a_chords_body_that_a_worker_finds_cannot_run_fails_once(crew):
    """Celery stores such an end without a request: it belongs to the task that runs."""
    finder = crew.send("fail_a_body", body := str(uuid.uuid4()))
    assert crew.ended(finder).result == "done"
    row = crew.finished(body)
    assert (row.status, row.error_type, row.error_message) == (
        "failed", "celery.exceptions.ChordError", "a part is missing",
    )  # fmt: skip
    assert (crew.kinds(finder), crew.kinds(body)) == (["succeeded"], ["failed"])


def test_an_end_that_is_stored_without_a_request_is_recorded_with_that_of_the_task_that_runs(crew):
    runs = crew.send("fail_another", other := str(uuid.uuid4()))
    assert crew.ended(runs).result == "done"
    assert (crew.finished(other).status, crew.row(other).error_message) == ("failed", "not mine")
    assert (crew.kinds(runs), crew.kinds(other)) == (["succeeded"], ["failed"])


def test_many_ends_at_once_are_each_recorded_once(crew):
    tasks = crew.app.tasks
    sent = group([tasks["endings.echo"].s(n) for n in range(100)] + [tasks["endings.retry"].s() for _ in range(20)])
    results = sent.apply_async().results
    rows = [crew.ended(result.id) for result in results]
    assert [row.result for row in rows] == [*range(100), *[1] * 20]
    eventually(lambda: all(crew.kinds(result.id).count("succeeded") == 1 for result in results))


# --- the fence -------------------------------------------------------------------------------------------------------


def test_how_a_claim_ends_that_was_taken_away_is_not_recorded(crew, tmp_path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    task_id = crew.send("wait", str(begun), str(go_on))
    eventually(begun.exists)
    (claims,) = crew.redis.scan_iter(crew.key("claims:*"), count=1000)
    seen = crew.worker.output.count("is stale")
    crew.redis.delete(claims)
    go_on.touch()
    eventually(lambda: crew.worker.output.count("is stale") > seen)
    crew.ended(crew.send("echo"))
    assert crew.kinds(task_id) == []


def test_an_end_that_is_stored_without_a_request_is_fenced_by_the_claim_of_the_task_that_runs(crew, tmp_path):
    go_on = tmp_path / "go-on"
    runs = crew.send("fail_another", other := str(uuid.uuid4()), str(go_on))
    eventually((tmp_path / "go-on.begun").exists)
    (claims,) = crew.redis.scan_iter(crew.key("claims:*"), count=1000)
    seen = crew.worker.output.count("is stale")
    crew.redis.delete(claims)
    go_on.touch()
    eventually(lambda: crew.worker.output.count("is stale") > seen)
    crew.ended(crew.send("echo"))
    assert (crew.kinds(runs), crew.row(other)) == ([], None)


# --- times ahead -----------------------------------------------------------------------------------------------------


def test_a_task_for_much_later_is_parked_held_by_nobody_and_comes_back_in_time(crew):
    later = datetime.now(UTC) + timedelta(hours=1)
    task_id = crew.send("echo", [], eta=later)
    ((message, due),) = eventually(lambda: crew.redis.zrange(crew.key("parked"), 0, -1, withscores=True))
    assert due == int(later.timestamp() * 1000)
    crew.is_not_held(task_id)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    assert later.isoformat().encode() in message
    _swap(crew, message, message.replace(later.isoformat().encode(), soon.isoformat().encode()), soon)
    row = crew.ended(task_id)
    assert (row.result, row.started_at > soon) == ([], True)
    assert crew.redis.zcard(crew.key("parked")) == 0


def test_tasks_that_wait_for_a_near_time_take_no_slot(crew):
    due = datetime.now(UTC) + timedelta(seconds=8)
    waiting = [crew.send("echo", number, eta=due) for number in range(5)]
    eventually(lambda: len(crew.held()) == 5)
    assert crew.finished(crew.send("echo", "now")).started_at < due
    for task_id in waiting:
        assert crew.ended(task_id).started_at > due


def test_a_revoked_task_that_waits_for_its_time_never_starts(crew, ledger):
    due = datetime.now(UTC) + timedelta(seconds=6)
    task_id = crew.send("requeue_once", str(ledger), eta=due)
    eventually(crew.held)
    crew.redis.xadd(crew.key("revoked"), {"task_id": task_id})
    assert crew.ended(task_id).status == "cancelled"
    assert not ledger.exists()


# --- and at last ---------------------------------------------------------------------------------------------------


def test_after_all_this_nothing_is_held_and_the_one_lease_is_the_workers(crew):
    eventually(lambda: not crew.held())
    ((owner, left),) = crew.leases()
    assert owner.startswith(b"celery@w1.")
    assert 10 < left <= 31
    assert crew.worker.popen.poll() is None


# --- helpers ---------------------------------------------------------------------------------------------------------


def _is_dead(crew, task_id):
    row = crew.ended(task_id)
    assert (row.status, row.error_type) == ("dead", "howl.errors.TaskDied")
    *broken_off, end = crew.kinds(task_id)
    assert (set(broken_off), end) == ({"requeued"}, "dead")
    assert task_id.encode() in crew.redis.hget(crew.key("dead"), task_id)
    assert not crew.redis.hexists(crew.key("deaths"), task_id)


def _message(*, headers, body="[[], {}, {}]"):
    """A message of Celery's, but for what it is said to be."""
    properties = {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "celery"}}
    return json.dumps(
        {"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": headers,
         "properties": properties}
    ).encode()  # fmt: skip


def _swap(crew, message, changed, due):
    with crew.redis.pipeline() as pipe:
        pipe.zrem(crew.key("parked"), message)
        pipe.zadd(crew.key("parked"), {changed: int(due.timestamp() * 1000)})
        pipe.execute()


def test_a_running_task_is_cancelled_though_its_worker_did_not_hear_the_broadcast(prefork, tmp_path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    task_id = prefork.send("wait", str(begun), str(go_on))
    eventually(begun.exists)
    prefork.app.control.revoke_for_good(task_id, "SIGTERM")
    assert prefork.ended(task_id).status == "cancelled"


def test_a_running_task_is_cancelled_by_its_stamp_though_its_worker_did_not_hear(prefork, tmp_path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    signature = prefork.app.signature("endings.wait", (str(begun), str(go_on)))
    signature.stamp(who="unheard")
    task_id = signature.apply_async(queue=None).id
    eventually(begun.exists)
    prefork.app.control._keep("revoke_by_stamped_headers", headers={"who": "unheard"}, terminate=True)
    assert prefork.ended(task_id).status == "cancelled"
