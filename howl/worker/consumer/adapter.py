"""A worker's claims: where the session, Celery's loop and the outcomes of its runs meet."""

import json
import logging
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery import bootsteps, states
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name
from kombu.utils.json import loads

from howl.broker.message import NO_TASK, NOBODY, task_headers
from howl.celery import settings_of, worker_queue
from howl.errors import MessageRefused
from howl.node_names import worker_id_of
from howl.outcomes import LATEST_ATTEMPT, Outcome, died, encode, failure, is_id, requeued
from howl.worker.consumer.pool import make_resizable, most_in_hand, slots_to_fill, withdraw, write_whole_jobs
from howl.worker.consumer.prefetch import PrefetchPolicy
from howl.worker.consumer.request import ClaimedRequest
from howl.worker.consumer.revocations import Order, Revocations
from howl.worker.consumer.server_clock import ServerClock
from howl.worker.consumer.session import Claim, ConsumerSession
from howl.worker.results.outbox import END, LAST, OTHER, Collector, Parcel

logger = logging.getLogger(__name__)

#: Times that a message's run may die with its process, or be broken off; after one more it is a dead letter.
DEATHS = 5
#: Seconds after the end of a run acknowledged early in which it may report more, such as the rest of its chain.
LATE = 60.0
#: Seconds before its ETA beyond which a task waits in Redis, not here.
AHEAD = 60.0
#: Seconds for which one of this process's threads may keep another waiting: with Python's default, 5 ms, children that
#: have ended a short task idle while the session's thread reads an answer.
SWITCH = 0.0005


class Claims(bootsteps.StartStopStep):
    """The boot step that takes the task queues over from kombu when the worker has booted."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        parent.howl_claims = None
        for task in parent.app.tasks.values():
            task.Request = claimed(task.Request)

    def start(self, parent: Any) -> None:
        """Attach the claims to a consumer; they outlive it, for Celery starts a new one after losing its connection."""
        if parent.howl_claims is None:
            parent.howl_claims = Adapter(parent)
        parent.howl_claims.attach(parent)

    def shutdown(self, parent: Any) -> None:
        if parent.howl_claims is not None:
            parent.howl_claims.close()


def claimed(named: type[Request] | str) -> type[Request]:
    """Return a task's request class, extended to report when its run begins and when it died."""
    given: type[Request] = symbol_by_name(named)
    if issubclass(ClaimedRequest, given):
        return ClaimedRequest
    return given if issubclass(given, ClaimedRequest) else type(given.__name__, (ClaimedRequest, given), {})


@dataclass(slots=True)
class Run:
    """The state of a held message and of its run."""

    task_id: str
    #: Ends it has reported, by task: its own, and those of others, such as the rest of its chain.
    ends: dict[str, Parcel] = field(default_factory=dict)
    #: Whether it has reported all it will.
    told_all: bool = False
    begun: bool = False
    #: Whether it died with its process.
    died: bool = False


class Adapter:
    """The messages a worker holds, and what their runs have reported."""

    def __init__(self, consumer: Any) -> None:
        app = consumer.app
        self.owner = f"{consumer.hostname}.{uuid.uuid4().hex[:12]}"
        self.worker_id = worker_id_of(consumer.hostname)
        #: Every claim's tag begins with this.
        self.mark = f"{self.owner}:"
        self.pool = consumer.pool
        self.semaphore = consumer.controller.semaphore
        self.session = ConsumerSession(
            settings_of(app),
            self.owner,
            PrefetchPolicy(partial(slots_to_fill, consumer.controller), most_in_hand(self.pool)),
            self._stale,
            self._revoked,
            app.howl_clock.heard,
        )
        self._clock: ServerClock = app.howl_clock
        self._tasks = app.tasks
        #: Whether workers announce to the server which tasks they know.
        self._is_announced = bool(settings_of(app).nats_url)
        self.revoking = Revocations(self.pool, self.session.wake_loop)
        self.collector: Collector = consumer.controller.howl_outbox.collector
        self.collector.deliver = self._received
        self._lock = threading.Lock()
        self._channel: Any = None
        self._hub: Any = None
        self._loop_thread = threading.current_thread()
        self._runs: dict[str, Run] = {}
        self._early: set[str] = set()
        self._early_over: deque[tuple[float, str]] = deque()
        sys.setswitchinterval(SWITCH)
        write_whole_jobs(self.pool)
        make_resizable(self.pool)
        self.session.start()
        self.collector.start()

    def attach(self, consumer: Any) -> None:
        """Feed this consumer's channel from now on."""
        if self._channel is not None:
            self._put_back(self._not_in_the_pool())
        self._channel = consumer.task_consumer.channel
        self._channel.claims = self
        self._channel.connection.patient = True
        self._hub = consumer.hub
        self._loop_thread = threading.current_thread()
        self._hub.add_reader(self.session.ready_reader, self._hand_over)
        self._hub.on_tick.add(self.session.tick)

    def _not_in_the_pool(self) -> set[str]:
        """Return the tags that wait for an ETA or a child: Celery forgets them when its consumer restarts or stops."""
        processes = getattr(self.pool, "_pool", None)
        waiting = {job.correlation_id for job in getattr(processes, "_cache", {}).values()}
        runs = [(tag, run) for tag, run in list(self._runs.items()) if not run.begun and run.task_id not in waiting]
        # Threads run what they were handed, whatever Celery forgets: only what waits for its ETA is not theirs.
        return {tag for tag, _ in runs if processes is not None or self.session.is_waiting(tag)}

    def release(self) -> None:
        """Take no more, and put back in order all that no pool process has yet; Celery's loop has ended."""
        self.session.listen([])
        self.revoking.carry_out()
        self._put_back(self._withdrawn() | self._not_in_the_pool())

    def hand_back(self) -> None:
        """Settle runs that reported their end, put back all else; from any thread, when none may be waited for."""
        self.collector.read()
        for tag, run in list(self._runs.items()):
            if run.task_id in run.ends:
                self._settle(tag)
        self.close()

    def close(self) -> None:
        """Send what is left to send, put back what did not end; a run broken off by that counts as one that died."""
        self.collector.close()
        begun = {tag: run.task_id for tag, run in list(self._runs.items()) if run.begun}
        for tag, task_id in begun.items():
            self._tell_requeued(tag, task_id)
        self.session.close({tag: [task_id, DEATHS, encode(died(task_id, DEATHS))] for tag, task_id in begun.items()})

    def _tell_requeued(self, tag: str, task_id: str) -> None:
        """Record the task as requeued, before its message goes back, so that nobody takes it for work that goes on."""
        self.session.note(tag, encode(requeued(task_id, self.worker_id)))

    def _put_back(self, tags: set[str]) -> None:
        for tag in reversed([tag for tag in list(self._runs) if tag in tags]):
            self._forget(tag)
            self.session.put_back(tag)

    # --- from the session to Celery ----------------------------------------------------------------------------------

    def listen(self, priorities: list[list[str]]) -> None:
        self.session.listen(priorities)

    def _hand_over(self) -> None:
        self.revoking.carry_out()
        if self.session.wants_back:
            self.session.wants_back = False
            # It waits behind a long task, while another worker may be idle.
            self._put_back(self._withdrawn())
        for claim in self.session.take():
            try:
                self._deliver(claim)
            except NO_TASK as error:
                logger.error("A message that cannot be read is set aside: %r.", error)  # noqa: TRY400
                self._settle(claim.tag)

    def _deliver(self, claim: Claim) -> None:
        message = _read(claim.message)
        headers = task_headers(message)
        if not is_id(task_id := headers.get("id")):
            raise ValueError("it names no task")  # it must not run, for how it ends could not be recorded
        self._runs[claim.tag] = Run(task_id)
        message["properties"]["delivery_tag"] = claim.tag
        if claim.message.endswith(b" "):  # a run of it had begun, see turn.lua
            message["properties"]["delivery_info"]["redelivered"] = True
        if self._is_others(headers.get("task"), claim):
            self._forget(claim.tag)
            self.session.unknown(claim.tag)
            return
        due = _due(headers.get("eta"))
        now = self._clock.time()
        if due is not None and due > now + AHEAD:
            self._forget(claim.tag)
            self.session.park(claim.tag, due)
            return
        if due is not None and due > now:
            self.session.waits(claim.tag)
        self._channel.connection._deliver(message, self._queue_of(claim))  # noqa: SLF001  # kombu's way in

    def _is_others(self, name: Any, claim: Claim) -> bool:
        """Return whether this worker does not know the task and another one may, as far as anybody can tell."""
        if name in self._tasks or not self._is_announced or claim.message.endswith(NOBODY):
            return False
        own = worker_queue(self.worker_id).name
        if self._queue_of(claim) == own:
            return False
        logger.warning("This worker does not know the task %.255r: it goes back for one that does.", name)
        return True

    def _withdrawn(self) -> set[str]:
        """Withdraw what waits in Celery's hands for a child, and return its tags."""
        # Copied at once: a thread whose run has ended takes its request out meanwhile.
        known = [reference() for reference in list(state.reserved_requests.data)]
        asked = (withdraw(self.pool, self.semaphore, request) for request in known if request is not None)
        return {tag for tag in asked if tag is not None}

    def _queue_of(self, claim: Claim) -> str:
        name = claim.key.decode().removeprefix(self._channel.global_keyprefix)
        return name.partition("\x06")[0]

    # --- from Celery to the session ----------------------------------------------------------------------------------

    def holds(self, tag: str) -> bool:
        return self.session.holds(tag)

    def began(self, tag: str, task_id: str, told: Callable[[], bytes], *, early: bool) -> None:
        """Report that the run has begun, as `told` says; `early` if its message is acknowledged now, before its end."""
        if (run := self._runs.get(tag)) is not None:
            run.begun = True
        if early:
            self._remember_early(tag)
            self.session.append(told())
            # At once: Celery's own acknowledgement comes when its loop gets to it, in solo at the end.
            self._settle(tag)
        else:
            self.session.began(tag, task_id, told)

    def success_of(self, tag: str, task_id: str) -> dict[str, Any] | None:
        """Return the success that the run reported, if its process died after that; None if it reported none."""
        self.collector.read()
        run = self._runs.get(tag)
        told = run.ends.get(task_id) if run is not None else None
        end = loads(told.document) if told is not None else {}
        return {"status": end["state"], "result": end.get("result")} if end.get("state") == states.SUCCESS else None

    def died(self, tag: str) -> None:
        """Note that the run died with its process."""
        if (run := self._runs.get(tag)) is not None:
            run.died = True

    def acknowledged(self, tag: str) -> None:
        """Settle the message; in Celery's loop a moment later, as some ends are acknowledged before they are stored."""
        in_loop = threading.current_thread() is self._loop_thread and state.should_stop is None
        if in_loop and not self._has_ended(tag):
            self._hub.call_later(0, self._settle, tag)  # not call_soon: the loop may sleep for a second first
        else:
            self._settle(tag)

    def _has_ended(self, tag: str) -> bool:
        run = self._runs.get(tag)
        if run is None or run.told_all:
            return run is not None
        self.collector.read()
        return run.task_id in run.ends

    def rejected(self, tag: str, *, requeue: bool) -> None:
        if not requeue:
            self.acknowledged(tag)
            return
        self.collector.read()
        run = self._runs.get(tag)
        self._forget(tag)  # and what the run reported of its end: it runs again
        if run is not None and run.begun:
            self._tell_requeued(tag, run.task_id)
        if run is not None and run.died:
            self.session.lost(tag, run.task_id, DEATHS, encode(died(run.task_id, DEATHS)))
        else:
            self.session.requeue(tag)

    def _settle(self, tag: str) -> None:
        run = self._runs.get(tag)
        if run is None:
            self.session.set_aside(tag)
        else:
            if not run.told_all:
                self.collector.read()
            with self._lock:
                ends = [end.document for end in run.ends.values()]
            self.session.settle(tag, run.task_id, ends or [_bare(run.task_id, begun=run.begun)])
        self._forget(tag)

    def _forget(self, tag: str) -> None:
        self._runs.pop(tag, None)

    def _revoked(self, orders: list[Order]) -> None:
        self.revoking.told(orders)

    def _stale(self, tag: str) -> None:
        logger.warning("The claim %s is stale: another worker has its task now; how it ends here is not kept.", tag)
        self._forget(tag)

    # --- what runs report -------------------------------------------------------------------------------------------

    def _received(self, item: Parcel) -> None:
        tag = item.tag or self._tag_of(item.task_id)
        if item.kind == OTHER or not tag.startswith(self.mark):
            self.session.append(item.document)
        elif tag in self._early:
            self._after_early_acknowledgement(tag, item)
        elif item.kind in (END, LAST):
            self._note_end(tag, item)
        elif self.session.holds(tag):
            self.session.note(tag, item.document)

    def _after_early_acknowledgement(self, tag: str, item: Parcel) -> None:
        self.session.append(item.document)
        if item.kind in (END, LAST):
            self._early_over.append((time.monotonic(), tag))

    def _remember_early(self, tag: str) -> None:
        self._early.add(tag)
        while self._early_over and self._early_over[0][0] < time.monotonic() - LATE:
            self._early.discard(self._early_over.popleft()[1])

    def _note_end(self, tag: str, item: Parcel) -> None:
        run = self._runs.get(tag)
        if run is None:
            return  # its claim is settled or stale: this comes too late
        with self._lock:
            # As in Celery, the last end reported before a success holds (`update_state(state="FAILURE")`, and then a
            # normal return); but that its process died does not replace what a run has reported of its end.
            told = run.ends.get(item.task_id)
            if told is None or (told.kind == END and (item.kind == LAST or not run.died)):
                run.ends[item.task_id] = item
        if item.kind == LAST and item.task_id == run.task_id:
            run.told_all = True

    def _tag_of(self, task_id: str) -> str:
        """Return the tag of a task's message: Celery stores some ends, as an unregistered task's, without naming it."""
        return next((tag for tag, run in list(self._runs.items()) if run.task_id == task_id), "")


def _read(message: bytes) -> Any:
    """Decode a message as kombu does, whose check of every object for a type's name costs more than all the rest."""
    return loads(message) if b"__type__" in message else json.loads(message)


def _due(eta: Any) -> float | None:
    """Return an ETA in seconds since 1970; None without one, or with one that is left for Celery to judge."""
    if not isinstance(eta, str):
        return None
    try:
        moment = datetime.fromisoformat(eta)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bare(task_id: str, *, begun: bool) -> bytes:
    """Make the end of a message whose run stored nothing (ignored, replaced), or that never ran, being unreadable."""
    if begun:
        now = datetime.now(UTC).isoformat()
        return encode(Outcome(task_id=task_id, state="ENDED", at=now, attempt=LATEST_ATTEMPT))
    return encode(failure(task_id, "FAILURE", MessageRefused("The message could not be read, or was refused.")))
