"""How many messages a worker should hold: enough to stay busy through a turn's round trip, and no more."""

from collections.abc import Callable

#: Seconds of work to hold beside what covers the round trip: a turn waits for its thread and for others.
SPARE = 0.04
#: Most messages held beyond the free slots.
MOST = 1000
#: Seconds a task may take for Celery to be handed one more than it has slots: below, handing over costs as much.
SHORT = 0.02
#: Weight of the newest measurement.
WEIGHT = 0.1


class Room:
    """Learns from how long tasks and turns take."""

    def __init__(self, slots: Callable[[], int], most_in_hand: int = 1) -> None:
        """`most_in_hand`: how many short tasks Celery may be handed for each slot."""
        self._slots = slots
        self._most_in_hand = most_in_hand
        self._task: float | None = None
        self._turn = 0.0
        self._parked = 0

    def ended(self, seconds: float) -> None:
        """A task took so long."""
        self._task = seconds if self._task is None else (1 - WEIGHT) * self._task + WEIGHT * seconds

    def turned(self, seconds: float) -> None:
        """A turn took so long."""
        self._turn = (1 - WEIGHT) * self._turn + WEIGHT * seconds if self._turn else seconds

    def parked(self) -> None:
        """A message was for much later: it took no slot and no time, and more like it may stand before what is due."""
        self._parked += 1

    def asked(self) -> None:
        """A turn has asked for as many as there was room for."""
        self._parked = 0

    def too_much(self) -> None:
        """Messages waited behind a long task: until tasks are short again, hold none ahead."""
        self._task = max(self._task or 0.0, 1.0)

    @property
    def slots(self) -> int:
        """Tasks that can run at once."""
        return self._slots()

    @property
    def hand_out(self) -> int:
        """Messages that may be in Celery's hands at once."""
        slots = self.slots
        return slots * self._most_in_hand if self._task is not None and self._task < SHORT else slots

    @property
    def too_few(self) -> int:
        """In Celery's hands, so many or fewer: it should be handed more. Short tasks are handed over some at a time."""
        return self.hand_out - 1 if self.hand_out == self.slots else self.hand_out // 2

    @property
    def hold(self) -> int:
        """Messages to hold in all: those in hand, and what the slots will finish, or what will be parked, meanwhile."""
        slots = self.slots
        ahead = 0.0 if self._task is None else slots * (2 * self._turn + SPARE) / max(self._task, 0.0002)
        return self.hand_out + min(MOST, int(ahead) + 2 * self._parked)
