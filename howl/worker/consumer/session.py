"""The worker's side of a turn: one thread that owns the exchange with Redis and knows which messages are held.

Celery's loop takes messages from it; any thread may report how they ended. The session handles a cut connection by
itself: it repeats the turn, within the lease and beyond, and Celery never sees it.
"""

import contextlib
import logging
import os
import random
import select
import signal
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from howl.broker.doorbell import Bell, doorbell
from howl.broker.namespaces import namespace_of
from howl.broker.scripts import TURN
from howl.config import Settings
from howl.connections.explain import reason, takes_nothing_new
from howl.connections.redis import redis_client
from howl.worker.consumer.prefetch import PrefetchPolicy

logger = logging.getLogger(__name__)

#: Seconds between two polls of empty queues: stock clients ring no doorbell.
LOOK = 1.0
#: Shortest and longest pause between two turns under load, in seconds: one turn reports all that ended meanwhile.
PACE, LONGEST_PACE = 0.002, 0.02
#: Commands of a turn at which that pause is the longest: the more there is to send, the more one turn should carry.
MANY = 20
#: Most messages and bytes (about) of one turn, in either direction, and values of its commands; turn.lua takes no more.
MOST, MOST_BYTES, MOST_VALUES = 1000, 8 << 20, 4000
#: Most messages held, including those that wait for their ETA: after a gap one turn names them all, and turn.lua takes
#: no more.
MOST_HELD = 50_000
#: Seconds after which a run that still goes on is reported as begun.
BEGINNING = 0.25
#: Most bytes (about) of messages that wait here for a free slot, however many of them would begin in time.
AHEAD_BYTES = 2 * MOST_BYTES
#: Seconds for which sent commands are remembered, in case Redis loses its last second.
MEMORY = 5.0
#: Seconds without a tick of Celery's loop after which an idle worker no longer renews its lease.
STUCK = 60.0


@dataclass(slots=True)
class Claim:
    """A message this worker holds."""

    tag: str
    #: The key of the queue's list, with the prefix.
    key: bytes
    message: bytes
    taken_at: float
    #: Monotonic seconds at which its run began; None before.
    began_at: float | None = None
    #: Whether it waits for its ETA, and so takes no slot.
    waiting: bool = False


@dataclass(slots=True)
class Command:
    """A command to send in the next turn."""

    kind: str
    tag: str
    values: list[bytes | str | int] = field(default_factory=list)


class ConsumerSession(threading.Thread):
    """The thread that exchanges turns with Redis for one owner."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        prefetch: PrefetchPolicy,
        on_stale: Callable[[str], None],
        on_revoked: Callable[[list[dict[bytes, bytes]]], None],
        on_time: Callable[[float, float, float], None],
    ) -> None:
        super().__init__(name="howl-session", daemon=True)
        self.settings = settings
        self.owner = owner
        self.namespace = namespace_of(settings)
        self.prefetch = prefetch
        self._on_stale = on_stale
        self._on_revoked = on_revoked
        #: Called with this machine's time before and after a turn, and Redis's in between (seconds since 1970).
        self._on_time = on_time
        self._lock = threading.Lock()
        self._priorities: list[list[str]] = []
        self._claims: OrderedDict[str, Claim] = OrderedDict()
        #: Claims not yet handed to Celery, in order.
        self._buffer: deque[Claim] = deque()
        self._idle_since = time.monotonic()
        #: How many of the claims wait for their ETA.
        self._waiting = 0
        self._commands: deque[Command] = deque()
        #: Reports that a run has begun, by tag; dropped if its end comes first.
        self._beginnings: dict[str, tuple[str, Callable[[], bytes]]] = {}
        self._unconfirmed: deque[tuple[float, int, list[Command]]] = deque()
        self._number = 0
        self._known_revoked = b"0-0"
        self._closing: float | None = None
        #: Whether an error ended the thread, and so ends the worker.
        self.failed = False
        self._claiming = True
        self._empty = False
        #: Whether Redis gives out nothing, because too many outcomes wait for the recorder.
        self._held_up = False
        self._ticked_at = time.monotonic()
        self._asleep = False
        self._ready = False
        self._pace = PACE
        #: Whether Celery's loop should put back what it was handed and no pool process has yet.
        self.wants_back = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        #: Readable when Celery's loop should call `take`.
        self.ready_reader, self._ready_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._client: Any = redis_client(settings, timeout=settings.lease / 3)
        self._bell = Bell(self._client.connection_pool)

    # --- called by Celery's loop and by pool threads ----------------------------------------------------------------

    def listen(self, priorities: list[list[str]]) -> None:
        """Take from these lists (without the prefix), rotating within a priority; put back what waits from others."""
        with self._lock:
            self._priorities = priorities
            known = {self.settings.key(name).encode() for names in priorities for name in names}
            unwanted = [claim for claim in self._buffer if claim.key not in known]
            for claim in reversed(unwanted):
                self._buffer.remove(claim)
                del self._claims[claim.tag]
                self._commands.append(Command("back", claim.tag))
            self._empty = False
        self._wake()

    def take(self) -> list[Claim]:
        """Return messages for free slots, in order; Celery's loop calls it when `ready_reader` is readable."""
        _drain(self.ready_reader)
        with self._lock:
            self._ticked_at = time.monotonic()
            self._ready = False
            free = self.prefetch.hand_out - self._in_hand()
            return [self._buffer.popleft() for _ in range(min(free, len(self._buffer)))]

    def _in_hand(self) -> int:
        """Return how many messages handed to Celery take a slot, or wait for one."""
        return len(self._claims) - len(self._buffer) - self._waiting

    def tick(self) -> None:
        """Note that Celery's loop is alive."""
        self._ticked_at = time.monotonic()

    def wake_loop(self) -> None:
        """Wake Celery's loop; a signal handler may call this."""
        _poke(self._ready_writer)

    @property
    def idle_seconds(self) -> float:
        """Seconds for which nothing has been held; 0 while something is."""
        return 0.0 if self._claims else time.monotonic() - self._idle_since

    def holds(self, tag: str) -> bool:
        return tag in self._claims

    def began(self, tag: str, task_id: str, told: Callable[[], bytes]) -> None:
        """Report that a run has begun, with the outcome `told` makes, unless its end comes first and says as much."""
        with self._lock:
            claim = self._claims.get(tag)
            if claim is None or claim.began_at is not None:
                return
            claim.began_at = time.monotonic()
            self._no_longer_waits(claim)
            if not self._beginnings:
                self._wake()  # the thread may be in a long sleep
            self._beginnings[tag] = (task_id, told)

    def waits(self, tag: str) -> None:
        """Note that the message waits for its ETA, and takes no slot."""
        with self._lock:
            claim = self._claims.get(tag)
            if claim is not None and not claim.waiting:
                claim.waiting = True
                self._waiting += 1
        self._signal_ready()

    def is_waiting(self, tag: str) -> bool:
        """Return whether the message waits for its ETA."""
        claim = self._claims.get(tag)
        return claim is not None and claim.waiting

    def _no_longer_waits(self, claim: Claim) -> None:
        self._waiting -= claim.waiting
        claim.waiting = False

    def note(self, tag: str, outcome: bytes) -> None:
        """Append a progress outcome while the claim is held."""
        self._say(Command("note", tag, [outcome]))

    def append(self, outcome: bytes) -> None:
        """Append an outcome that belongs to no claim."""
        self._say(Command("loose", "", [outcome]))

    def settle(self, tag: str, task_id: str, outcomes: list[bytes]) -> None:
        """Report how the message ended; a failed chain has as many outcomes as tasks, too many for one turn."""
        for outcome in outcomes[:-MOST]:
            self.note(tag, outcome)
        self._let_go(tag, Command("settle", tag, [task_id, *outcomes[-MOST:]]))

    def put_back(self, tag: str) -> None:
        """Put the message back at the end its queue is taken from."""
        self._let_go(tag, Command("back", tag))

    def requeue(self, tag: str) -> None:
        """Put the message back at the end producers push to, behind what waits."""
        self._let_go(tag, Command("requeue", tag, [1]))

    def lost(self, tag: str, task_id: str, limit: int, outcome: bytes) -> None:
        """Report that the run died with its process."""
        self._let_go(tag, Command("lost", tag, [task_id, limit, outcome]))

    def set_aside(self, tag: str) -> None:
        """Move an unreadable message out of the others' way, for a person to look at."""
        self._let_go(tag, Command("aside", tag))

    def unknown(self, tag: str) -> None:
        """Give up a message whose task this worker does not know: others may."""
        self._let_go(tag, Command("unknown", tag))

    def park(self, tag: str, due: float) -> None:
        """Park the message until `due` (seconds since 1970): until then nobody need hold it."""
        self.prefetch.parked()
        self._let_go(tag, Command("park", tag, [int(due * 1000)]))

    def close(self, broken_off: Mapping[str, list[bytes | str | int]]) -> None:
        """Send what is left to send, put back what did not end, and stop, within about a third of the lease.

        Claims in `broken_off`, by tag, count as lost, with the values of that command.
        """
        timeout = self.settings.lease / 3
        with self._lock:
            self._claiming = False
            self._buffer.clear()
            for tag, claim in reversed(self._claims.items()):
                lost = broken_off.get(tag)
                began: list[bytes | str | int] = [] if claim.began_at is None else [1]
                self._commands.append(Command("lost", tag, lost) if lost else Command("back", tag, began))
            self._claims.clear()
            self._waiting = 0
            self._closing = time.monotonic() + timeout
        self._wake()
        if self.is_alive():
            self.join(timeout + 1)

    def _say(self, command: Command) -> None:
        with self._lock:
            self._commands.append(command)
        self._wake()

    def _let_go(self, tag: str, command: Command) -> None:
        with self._lock:
            claim = self._claims.pop(tag, None)
            if claim is None:
                return  # settled already, or stale
            self._idle_since = now = time.monotonic()
            if claim.began_at is not None or command.kind == "settle":
                self.prefetch.ended(now, None if claim.began_at is None else now - claim.began_at)
            self._no_longer_waits(claim)
            self._beginnings.pop(tag, None)
            self._commands.append(command)
            if self._buffer and self._in_hand() <= self.prefetch.low_watermark:
                self._signal_ready()
        self._wake()

    def _put_back_buffer(self) -> None:
        while self._buffer:
            claim = self._buffer.pop()
            del self._claims[claim.tag]
            self._commands.append(Command("back", claim.tag))

    # --- the thread -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take one turn after another, until closed and all is sent, or closing has timed out."""
        try:
            while not self._is_done():
                self._wait()
                self._give_up_stale_waits()
                self._turn()
        except Exception:
            # Without its session a worker would hold its tasks until the lease ends, and never run another.
            logger.exception("The session has failed: this worker ends, and what it holds goes back with its lease.")
            self.failed = True
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._client.close()
            self._bell.hang_up()

    def _is_done(self) -> bool:
        if self._closing is None:
            return False
        return not self._commands or time.monotonic() > self._closing

    def _wait(self) -> None:
        """Wait until there is something to send, room to fill, or a lease to renew."""
        with self._lock:
            timeout = 0.0 if self._commands else self._idle_time()
            self._asleep = timeout > 0
            listening = not self._commands and self._wants() > 0 and self._empty and not self._held_up
        if timeout <= 0:
            time.sleep(self._pace)
        else:
            bells = [*map(self.settings.key, self._bells())]
            self._sleep(timeout, self._bell.listen(bells) if listening else self._bell.asked)
            self._asleep = False

    def _idle_time(self) -> float:
        """Return the seconds for which nothing need be sent."""
        if self._beginnings:
            return BEGINNING
        longest = (
            self.prefetch.patience if self._buffer or self._in_hand() > self.prefetch.slots else self.settings.lease / 3
        )
        if self._wants() <= 0:
            return min(longest, self.settings.lease / 3)
        return min(longest, LOOK) if self._empty else 0.0

    def _sleep(self, timeout: float, bell: Any) -> None:
        descriptors = [self._wake_reader, *([bell] if bell is not None else [])]
        readable, _, _ = select.select(descriptors, [], [], timeout)
        if self._wake_reader in readable:
            _drain(self._wake_reader)
        if bell is not None and bell in readable:
            rung = self._bell.answer()
            with self._lock:
                is_full = self._wants() <= 0
            if rung is not None and is_full:
                self._say(Command("ring", "", [rung]))  # it was meant for a worker with room

    def _wants(self) -> int:
        """Return how many messages there is room for; the caller holds the lock, for this reads the buffer."""
        if not self._claiming or self._closing is not None or not any(self._priorities) or self._wanted_bytes() <= 0:
            return 0
        held = len(self._claims)
        return max(0, min(MOST, self.prefetch.hold - (held - self._waiting), MOST_HELD - held))

    def _wanted_bytes(self) -> int:
        """Return how many bytes of messages one turn may bring."""
        return max(0, min(MOST_BYTES, AHEAD_BYTES - sum(len(claim.message) for claim in self._buffer)))

    def _give_up_stale_waits(self) -> None:
        """Give back messages that wait here behind a long task while another worker might be idle."""
        now = time.monotonic()
        late = now - self.prefetch.patience
        with self._lock:
            if self._buffer and self._buffer[0].taken_at < late:
                self._put_back_buffer()
                self.prefetch.too_much(now)
            if self._claiming and self._in_hand() > self.prefetch.slots and self._is_kept_waiting(late):
                self.prefetch.too_much(now)
                self.wants_back = True
                self._signal_ready()

    def _is_kept_waiting(self, late: float) -> bool:
        claims = self._claims.values()
        return any(claim.began_at is None and not claim.waiting and claim.taken_at < late for claim in claims)

    def _turn(self) -> None:
        with self._lock:
            if self._closing is None and self._is_stuck():
                return
            if not self._commands or self._beginnings_are_old():
                for tag, (task_id, told) in self._beginnings.items():
                    self._commands += Command("began", tag, [task_id]), Command("note", tag, [told()])
                self._beginnings.clear()
            commands = self._next_commands()
            wanted, wanted_bytes = self._wants(), self._wanted_bytes()
            self.prefetch.asked()
            self._number += 1
        self._pace = min(LONGEST_PACE, max(PACE, LONGEST_PACE * len(commands) / MANY))
        self._unconfirmed.append((time.monotonic(), self._number, commands))
        began = time.monotonic()
        answer = self._ask(commands, wanted, wanted_bytes)
        if answer is not None:
            self._learn(answer[1][2::3], wanted, wanted_bytes, time.monotonic() - began)
            self._apply_reply(answer, wanted)
        while self._unconfirmed and self._unconfirmed[0][0] < time.monotonic() - MEMORY:
            self._unconfirmed.popleft()

    def _learn(self, messages: list[bytes], wanted: int, wanted_bytes: int, seconds: float) -> None:
        """Update from a turn that brought these messages whether the queues are empty, and how many to hold."""
        with self._lock:
            self._empty = len(messages) < wanted and sum(map(len, messages)) < wanted_bytes
            is_idle = not self._buffer and self._in_hand() < self.prefetch.slots
            self.prefetch.turned(seconds, dry=self._empty if wanted else None, idle=is_idle)

    def _next_commands(self) -> list[Command]:
        """Take as many commands as one turn may send: Redis closes a connection that sends more than 64 MB at once."""
        commands: list[Command] = []
        size = values = 0
        while self._commands and len(commands) < MOST and size < MOST_BYTES and values < MOST_VALUES:
            commands.append(self._commands.popleft())
            values += len(commands[-1].values)
            size += sum(len(value) for value in commands[-1].values if isinstance(value, bytes))
        return commands

    def _beginnings_are_old(self) -> bool:
        claim = self._claims.get(next(iter(self._beginnings), ""))
        return claim is not None and time.monotonic() - (claim.began_at or claim.taken_at) > BEGINNING

    def _is_stuck(self) -> bool:
        if time.monotonic() - self._ticked_at < STUCK or any(claim.began_at for claim in self._claims.values()):
            return False
        logger.error("Celery's loop has not moved for %g s and nothing runs: the lease is not renewed.", STUCK)
        return True

    def _ask(self, commands: list[Command], wanted: int, wanted_bytes: int) -> Any:
        """Send a turn until Redis answers: its number makes repeating safe. Return None if closing ends it first."""
        failures = 0
        while True:
            asked = time.time()
            try:
                answer = TURN.run(self._client, self._keys(), self._arguments(commands, wanted, wanted_bytes))
            except redis.RedisError as error:
                failures += 1
                if not takes_nothing_new(error):  # Redis answers; a thousand workers' handshakes would not help it
                    self._client.connection_pool.disconnect()
                if self._closing is not None and time.monotonic() > self._closing:
                    logger.error("Redis cannot be told what ended (%s): it runs again elsewhere.", reason(error))  # noqa: TRY400
                    return None
                if failures in (2, 20, 200):
                    logger.warning("Redis does not take a turn (%s): trying again.", reason(error))
                time.sleep(min(2.0, 0.05 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
                continue
            if answer[0] == b"ok":
                self._on_time(asked, time.time(), answer[5] / 1000)
                return answer
            commands, wanted = self._after_gap(int(answer[1])), 0

    def _after_gap(self, last: int) -> list[Command]:
        """Return the commands to send after Redis lost turns: what is held, and again what was sent since."""
        logger.warning("Redis has lost the turns after %d of %d: saying again what they said.", last, self._number)
        again = [
            command
            for _, number, commands in self._unconfirmed
            if number > last
            for command in commands
            if command.kind != "hold"
        ]
        # They are remembered as part of the turn that sends them again, not twice.
        self._unconfirmed = deque(said for said in self._unconfirmed if said[1] <= last)
        with self._lock:
            self._number = max(self._number, last) + 1
            self._commands.extendleft(reversed(again))
            # Claims with commands still to be sent are held too, until these are sent.
            spoken = (command.tag for command in self._commands)
            held = [Command("hold", tag) for tag in dict.fromkeys((*self._claims, *spoken)) if tag]
            self._known_revoked = b"0-0"
            commands = [Command("hold", ""), *held, *self._next_commands()]
        self._unconfirmed.append((time.monotonic(), self._number, commands))
        return commands

    def _keys(self) -> list[str]:
        own = [self.namespace.key(f"claims:{self.owner}"), self.namespace.key(f"turns:{self.owner}")]
        return [*own, *map(self.settings.key, self._lists()), *map(self.settings.key, self._bells())]

    def _lists(self) -> list[str]:
        """Return the lists, the more urgent first; within a priority another queue comes first each turn."""
        first = self._number
        return [names[(first + at) % len(names)] for names in self._priorities for at in range(len(names))]

    def _bells(self) -> list[str]:
        return sorted({doorbell(name) for names in self._priorities for name in names})

    def _arguments(self, commands: list[Command], wanted: int, wanted_bytes: int) -> list[Any]:
        said: list[Any] = []
        for command in commands:
            said += [command.kind, command.tag, len(command.values), *command.values]
        numbers = [self._number, int(self.settings.lease * 1000), wanted, wanted_bytes]
        who = [self.settings.key_prefix, self.namespace.root, self.owner]
        return [*who, *numbers, self._known_revoked, len(self._lists()), self.settings.backlog_limit, *said]

    def _apply_reply(self, answer: Any, wanted: int) -> None:
        _, given, stale, revoked, held_up, _ = answer
        now = time.monotonic()
        if revoked[1:]:  # before the loop can take what is given: some of it may be revoked
            self._on_revoked([dict(zip(fields[::2], fields[1::2], strict=True)) for fields in revoked[1:]])
        with self._lock:
            for tag, key, message in zip(given[::3], given[1::3], given[2::3], strict=True):
                claim = Claim(tag.decode(), key, message, now)
                self._claims[claim.tag] = claim
                self._buffer.append(claim)
            if stale:
                self._forget([tag.decode() for tag in stale])
            if not any(self._priorities) or not self._claiming:
                self._put_back_buffer()
            self._known_revoked = revoked[0]
        if wanted and held_up != self._held_up:
            self._note_held_up(bool(held_up))
        for tag in stale:
            self._on_stale(tag.decode())
        if given:
            self._signal_ready()

    def _note_held_up(self, held_up: bool) -> None:
        self._held_up = held_up
        if held_up:
            limit = self.settings.backlog_limit
            logger.warning("More than %d bytes of outcomes wait to be recorded: taking no more tasks until fewer do. "
                           "Does `howl server` run?", limit)  # fmt: skip
        else:
            logger.info("Outcomes are being recorded: taking tasks again.")

    def _forget(self, tags: list[str]) -> None:
        """Drop claims that another worker has taken over."""
        for tag in tags:
            claim = self._claims.pop(tag, None)
            if claim is not None:
                self._no_longer_waits(claim)
        self._buffer = deque(claim for claim in self._buffer if claim.tag in self._claims)

    # --- waking -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        # A command queued before the thread looks is seen without a poke, which costs more than the command.
        if self._asleep:
            _poke(self._wake_writer)

    def _signal_ready(self) -> None:
        if not self._ready:
            self._ready = True
            _poke(self._ready_writer)


def _poke(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):  # the pipe is full of pokes already
        os.write(descriptor, b".")


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(os.read(descriptor, 4096)) == 4096:
            pass
