"""How many messages a worker holds, by a simulation of its turns: no clock but the simulated one, and no chance."""

import itertools
from collections import deque

import pytest

from howl.worker.consumer.prefetch import PATIENCE, PrefetchPolicy
from howl.worker.consumer.session import LONGEST_PACE, MANY, MOST, PACE

NEAR = 0.0003


class Simulation:
    """A worker of `slots`, `trip` seconds away from its queue, whose loop sees a run as `lag` seconds longer."""

    def __init__(self, trip, *, lag=0.0, slots=4, most_in_hand=3):
        self.prefetch = PrefetchPolicy(lambda: slots, most_in_hand)
        self.trip, self.lag, self.slots = trip, lag, slots
        self.now = 0.0
        #: Seconds that the tasks in the queue take, in order.
        self.queue = deque()
        #: When each came here, and what it takes: what waits here, and what Celery has been handed.
        self.buffer, self.handed = deque(), deque()
        #: By slot: when what runs there ends, and what it takes.
        self.running = []
        self.ends, self.waits, self.unsaid, self.put_back = [], [], 0, 0

    def run(self, until):
        """Turn after turn until that second, or until all has ended."""
        while self.now < until and (self.queue or self.buffer or self.handed or self.running):
            self.give_up_stale_waits()
            wanted = min(MOST, max(0, self.prefetch.hold - self.held))
            self.prefetch.asked()
            words, self.unsaid = self.unsaid, 0
            given = [self.queue.popleft() for _ in range(min(wanted, len(self.queue)))]
            self.work_until(self.now + self.trip)
            idle = not self.buffer and len(self.handed) + len(self.running) < self.slots
            self.prefetch.turned(self.trip, dry=len(given) < wanted if wanted else None, idle=idle)
            self.buffer.extend((self.now, seconds) for seconds in given)
            self.work_until(self.now + min(LONGEST_PACE, max(PACE, LONGEST_PACE * words / MANY)))

    @property
    def held(self):
        return len(self.buffer) + len(self.handed) + len(self.running)

    def give_up_stale_waits(self):
        for waiting in (self.handed, self.buffer):
            if waiting and waiting[0][0] < self.now - self.prefetch.patience:
                self.put_back += len(waiting)
                self.queue.extendleft(seconds for _, seconds in reversed(waiting))
                waiting.clear()
                self.prefetch.too_much(self.now)

    def work_until(self, moment):
        """What the slots do meanwhile, one end after another."""
        self.fill()
        while self.running and min(self.running)[0] <= moment:
            self.running.sort()
            self.now, seconds = self.running.pop(0)
            self.ends.append(self.now)
            self.unsaid += 1
            self.prefetch.ended(self.now, seconds + self.lag)
            self.fill()
        self.now = moment

    def fill(self):
        while len(self.running) < self.slots and (self.handed or self.buffer):
            while self.buffer and len(self.running) + len(self.handed) < self.prefetch.hand_out:
                self.handed.append(self.buffer.popleft())
            taken_at, seconds = (self.handed or self.buffer).popleft()
            self.waits.append(self.now - taken_at)
            self.running.append((self.now + seconds, seconds))

    def rate(self, since):
        return sum(end >= since for end in self.ends) / (self.now - since)


@pytest.mark.parametrize("lag", [0.005, 0.03])
@pytest.mark.parametrize("seconds", [0.001, 0.0024, 0.1])
@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15, 0.3])
def test_far_a_worker_is_kept_as_busy_as_near_however_long_its_loop_sees_a_run(trip, seconds, lag):
    worker = Simulation(trip, lag=lag)
    worker.queue.extend([seconds] * int(40 / seconds))
    worker.run(until=3 + 24 * trip)
    possible = min(4 / seconds, MOST / (trip + LONGEST_PACE))
    assert worker.rate(since=1 + 20 * trip) > 0.97 * possible
    assert not worker.put_back
    assert max(worker.waits) < 0.35 + 2 * max(trip, seconds)


@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 10.0])
def test_nothing_is_held_behind_a_long_task(trip, seconds):
    worker = Simulation(trip)
    worker.queue.extend([seconds] * 40)
    for half_seconds in range(1, 300):
        worker.run(half_seconds / 2)
        assert worker.held <= 4
    assert max(worker.waits) == 0
    assert worker.ends[-1] < 40 / 4 * (seconds + 2 * trip + 2 * LONGEST_PACE)


@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15])
@pytest.mark.parametrize("every", [7, 50, 500])
def test_among_short_tasks_long_ones_keep_nothing_waiting_and_the_short_run_as_soon_as_a_slot_is_free(trip, every):
    worker = Simulation(trip, lag=0.005)
    count = 40 * every
    worker.queue.extend(10.0 if number % every == every - 1 else 0.001 for number in range(count))
    worker.run(until=300)
    assert len(worker.ends) == count
    assert max(worker.waits) < PATIENCE + 4 * trip + 2 * LONGEST_PACE
    # What waits behind long ones goes back, once for each time that they have taken all slots, and not again and again.
    assert worker.put_back < 10 * 4000 * (PATIENCE + 2 * trip)
    assert worker.now < 1.3 * (40 / 4) * 10


@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15])
def test_what_was_found_possible_is_still_known_after_there_was_nothing_to_do(trip):
    worker = Simulation(trip, lag=0.005)
    worker.queue.extend([0.002] * 10_000)
    worker.run(until=100)
    for _ in range(50):  # a few at a time, and long silences: so it is with every queue that is served
        worker.now += 10
        worker.queue.extend([0.002] * 3)
        worker.run(until=worker.now + 5)
    worker.now += 60
    began = worker.now
    worker.queue.extend([0.002] * 4000)
    worker.run(until=began + 20)
    assert worker.now - began < 4000 * 0.002 / 4 + 2 * trip + 0.1


@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15])
def test_a_worker_finds_within_a_second_or_two_that_more_is_possible(trip):
    worker = Simulation(trip)
    worker.queue.extend(itertools.chain([0.02] * 1000, [0.002] * 20_000))
    worker.run(until=10)
    faster = worker.ends[999]
    worker.run(until=faster + 4)
    assert worker.rate(since=faster + 0.5 + 8 * trip) > 0.95 * 4 / 0.002


@pytest.mark.parametrize("trip", [NEAR, 0.05, 0.15])
def test_a_machine_that_becomes_ten_times_slower_gives_back_what_it_cannot_begin_and_stays_busy(trip):
    worker = Simulation(trip, lag=0.005)
    worker.queue.extend(itertools.chain([0.002] * 8000, [0.02] * 4000))
    worker.run(until=4.0)
    held = worker.held
    worker.run(until=14.0)
    assert worker.rate(since=4.5 + 4 * trip) > 0.95 * 4 / 0.02
    assert worker.put_back < 2 * held  # once, and what was on its way meanwhile


def test_what_ended_without_having_begun_counts_as_an_end():
    prefetch = PrefetchPolicy(lambda: 4, 3)
    for number in range(1, 40):
        for _ in range(100):
            prefetch.ended(number / 10, None)
        prefetch.turned(0.05, dry=False, idle=True)
    assert prefetch.rate == pytest.approx(1000)
    assert prefetch.hold > 100


def test_a_turn_that_took_long_once_does_not_count():
    prefetch = PrefetchPolicy(lambda: 4, 3)
    for number, trip in enumerate([0.05, 20.0, 0.06, 0.05], 1):
        prefetch.ended(float(number), 0.001)
        prefetch.turned(trip, dry=False, idle=False)
    assert prefetch.patience == pytest.approx(PATIENCE + 0.1)
