"""How many messages a worker should hold: enough to stay busy through turns' round trips, and no more.

What is held beyond the slots is the work of a little over two turns, by the measured rate of ends and the measured
round trip: while one turn's messages are on their way, those of the one before are worked on. So there is always room
to find that more is possible, as in TCP's BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue
14(5), 2016): the rate is the highest of the last samples, the round trip the shortest of the last turns, and samples
taken while the queues had less than was wanted count only if they are higher.
"""

from collections import deque
from collections.abc import Callable

#: Most messages held beyond those in hand.
MOST = 5000
#: Seconds a task may take for Celery to be handed more than one for each slot: below, handing over costs as much.
SHORT = 0.02
#: Seconds beyond a round trip that a turn waits for its thread, for its pace, and for others.
SPARE = 0.03
#: Round trips' worth of work to hold beyond what is in hand: two would do if all took the same time, always.
STEADY = 2.5
#: The same after a turn that found slots without work: if there is more to be had, that doubles each turn.
PROBE = 4.0
#: Seconds for which what has come may wait for a slot while more is tried, at the measured rate and beside a round
#: trip; tasks that take longer than this have nothing waiting behind them.
WAIT = 0.3
#: Seconds a message may wait for a slot, beside two round trips, before another worker shall have it.
PATIENCE = 0.5
#: Shortest sample of the rate of ends, in seconds: over less, ends that are told together count as many a second.
SAMPLE = 0.05
#: Seconds by which a worker's busy loop and pipes may make a run seem longer; what is longer still, is.
LAG = 0.05
#: Samples of the rate, and turns, of which the highest and the shortest count.
REMEMBERED = 20
#: Weight of the newest measurement of how long a task takes.
WEIGHT = 0.1


class PrefetchPolicy:
    """Learns from ends and turns."""

    def __init__(self, slots: Callable[[], int], most_in_hand: int = 1) -> None:
        """`most_in_hand`: how many short tasks Celery may be handed for each slot."""
        self._slots = slots
        self._most_in_hand = most_in_hand
        self._task: float | None = None
        self._trips: deque[float] = deque(maxlen=REMEMBERED)
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        #: Ends of the current sample, seconds at which the one before it and its last came, and whether the queues had
        #: less than was wanted meanwhile.
        self._ends = 0
        self._since = self._until = 0.0
        self._limited = self._dry = True
        self._idle = False
        self._parked = 0

    def ended(self, now: float, seconds: float | None) -> None:
        """A task ended, and took so long; None: nobody knows, as of one that was cancelled before."""
        self._ends += 1
        self._until = now
        if seconds is not None:
            self._task = seconds if self._task is None else (1 - WEIGHT) * self._task + WEIGHT * seconds

    def turned(self, seconds: float, *, dry: bool | None, idle: bool) -> None:
        """A turn took so long. `dry`: the queues had less than it wanted (None: it wanted nothing); `idle`: it found
        slots without work.
        """
        self._trips.append(seconds)
        self._dry = self._dry if dry is None else dry
        self._limited |= self._dry
        self._idle = idle
        # From end to end: ends come together, and between two looks may be those of two times, or of none.
        span = self._until - self._since
        if span >= max(SAMPLE, self._trip):
            self._sample(self._ends / span)
            self._since, self._ends, self._limited = self._until, 0, self._dry

    def _sample(self, rate: float) -> None:
        if not self._limited or rate > max(self._rates, default=0.0):
            self._rates.append(rate)

    def parked(self) -> None:
        """A message was for much later: it took no slot and no time, and more like it may stand before what is due."""
        self._parked += 1

    def asked(self) -> None:
        """A turn has asked for as many as there was room for."""
        self._parked = 0

    def too_much(self, now: float) -> None:
        """Messages waited too long: fewer end than did, as the newest sample says; or none, for all slots have long
        tasks, and then none are held ahead until tasks are short again.
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
        """Ends a second that were seen to be possible, with tasks as long as they are now."""
        rate = max(self._rates, default=0.0)
        longer = (self._task or 0.0) - LAG
        return min(rate, self.slots / longer) if longer > 0 else rate

    @property
    def _trip(self) -> float:
        return min(self._trips, default=0.0)

    @property
    def patience(self) -> float:
        """Seconds a message may wait for a slot before it goes back: to whom it takes a round trip to reach."""
        return PATIENCE + 2 * self._trip

    @property
    def hand_out(self) -> int:
        """Messages that may be in Celery's hands at once."""
        slots = self.slots
        short = (self._task is not None and self._task < SHORT) or slots < SHORT * self.rate
        return slots * self._most_in_hand if short else slots

    @property
    def low_watermark(self) -> int:
        """In Celery's hands, so many or fewer: it should be handed more. Short tasks are handed over some at a time."""
        return self.hand_out - 1 if self.hand_out == self.slots else self.hand_out // 2

    @property
    def hold(self) -> int:
        """Messages to hold in all: those in hand, and what the slots will finish, or what will be parked, meanwhile."""
        return self.hand_out + min(MOST, int(self._ahead) + 2 * self._parked)

    @property
    def _ahead(self) -> float:
        if self._task is not None and self._task > WAIT:
            return 0.0
        seconds = STEADY * (self._trip + SPARE)
        if self._idle:
            seconds = max(seconds, min(PROBE * (self._trip + SPARE), 2 * self._trip + WAIT))
        return self.rate * seconds
