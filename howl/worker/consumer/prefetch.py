"""The number of messages a worker should hold: enough to stay busy through turns' round trips, and no more.

Beyond its slots a worker holds a little more than two turns' work, by the measured rate of ends and the measured round
trip: it works on the messages of one turn while those of the next are on their way. That leaves room to find that more
is possible, as in TCP's BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): the
rate is the highest of the last samples, the round trip the shortest of the last turns, and samples taken while the
queues had less than was wanted count only if they are higher.
"""

from collections import deque
from collections.abc import Callable

#: Most messages held beyond those in Celery's hands.
MOST = 5000
#: Seconds below which a task is short, and Celery is handed more than one for each slot: handing over costs as much.
SHORT = 0.02
#: Seconds that a turn takes beyond its round trip, waiting for its thread, for its pace, and for others.
SPARE = 0.03
#: Round trips' worth of work to hold beyond what is in hand: two would do if all always took the same time.
STEADY = 2.5
#: The same after a turn that found slots without work: if there is more to be had, it doubles each turn.
PROBE = 4.0
#: Seconds that messages may wait for a slot while more is tried, at the measured rate and in addition to a round trip;
#: nothing waits behind tasks that take longer than this.
WAIT = 0.3
#: Seconds that a message may wait for a slot, in addition to two round trips, before it goes back for another worker.
PATIENCE = 0.5
#: Shortest sample of the rate of ends, in seconds: over less, ends reported together would look like a high rate.
SAMPLE = 0.05
#: Seconds by which a worker's busy loop and pipes may make a run seem longer; time beyond that is its own.
LAG = 0.05
#: Number of rate samples, of which the highest counts, and of turns, of which the shortest counts.
REMEMBERED = 20
#: Weight of the newest measurement of how long a task takes.
WEIGHT = 0.1


class PrefetchPolicy:
    """The number of messages to hold and to hand out, learned from ends and turns."""

    def __init__(self, slots: Callable[[], int], most_in_hand: int = 1) -> None:
        """Let Celery be handed `most_in_hand` short tasks for each slot."""
        self._slots = slots
        self._most_in_hand = most_in_hand
        self._task: float | None = None
        self._trips: deque[float] = deque(maxlen=REMEMBERED)
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        #: Ends of the current sample; seconds at which the end before it and its last end came; whether the queues had
        #: less than was wanted meanwhile.
        self._ends = 0
        self._since = self._until = 0.0
        self._limited = self._dry = True
        self._idle = False
        self._parked = 0

    def ended(self, now: float, seconds: float | None) -> None:
        """Note that a task ended after so many seconds; None if unknown, as for one cancelled before it began."""
        self._ends += 1
        self._until = now
        if seconds is not None:
            self._task = seconds if self._task is None else (1 - WEIGHT) * self._task + WEIGHT * seconds

    def turned(self, seconds: float, *, dry: bool | None, idle: bool) -> None:
        """Note that a turn took so many seconds, and what it found.

        `dry`: the queues had less than it wanted (None: it wanted nothing); `idle`: it found slots without work.
        """
        self._trips.append(seconds)
        self._dry = self._dry if dry is None else dry
        self._limited |= self._dry
        self._idle = idle
        # From end to end: ends come in groups, and between two turns there may be two groups, or none.
        span = self._until - self._since
        if span >= max(SAMPLE, self._trip):
            self._sample(self._ends / span)
            self._since, self._ends, self._limited = self._until, 0, self._dry

    def _sample(self, rate: float) -> None:
        if not self._limited or rate > max(self._rates, default=0.0):
            self._rates.append(rate)

    def parked(self) -> None:
        """Note a message for much later: it took no slot and no time, and more like it may stand before what is due."""
        self._parked += 1

    def asked(self) -> None:
        """Note that a turn has asked for as many as there was room for."""
        self._parked = 0

    def too_much(self, now: float) -> None:
        """Hold fewer messages, for some waited too long.

        Either fewer end than did, as the newest sample says; or none end, for all slots have long tasks, and then none
        are held ahead until tasks are short again.
        """
        while len(self._rates) > 1:
            self._rates.popleft()
        if now - self._until > PATIENCE / 2:
            self._task = max(self._task or 0.0, 1.0)

    @property
    def slots(self) -> int:
        """Tasks that can run at once."""
        return self._slots()

    @property
    def rate(self) -> float:
        """Ends a second that were seen to be possible with tasks as long as they are now."""
        rate = max(self._rates, default=0.0)
        longer = (self._task or 0.0) - LAG
        return min(rate, self.slots / longer) if longer > 0 else rate

    @property
    def _trip(self) -> float:
        return min(self._trips, default=0.0)

    @property
    def patience(self) -> float:
        """Seconds that a message may wait for a slot before it goes back; another worker is a round trip away."""
        return PATIENCE + 2 * self._trip

    @property
    def hand_out(self) -> int:
        """Most messages that may be in Celery's hands at once."""
        slots = self.slots
        short = (self._task is not None and self._task < SHORT) or slots < SHORT * self.rate
        return slots * self._most_in_hand if short else slots

    @property
    def low_watermark(self) -> int:
        """Messages in Celery's hands at or below which it is handed more; short tasks are handed over in groups."""
        return self.hand_out - 1 if self.hand_out == self.slots else self.hand_out // 2

    @property
    def hold(self) -> int:
        """Messages to hold in all: those in hand, and those that will be finished or parked meanwhile."""
        return self.hand_out + min(MOST, int(self._ahead) + 2 * self._parked)

    @property
    def _ahead(self) -> float:
        if self._task is not None and self._task > WAIT:
            return 0.0
        seconds = STEADY * (self._trip + SPARE)
        if self._idle:
            seconds = max(seconds, min(PROBE * (self._trip + SPARE), 2 * self._trip + WAIT))
        return self.rate * seconds
