"""What the ledger says and holds at most, and its own failure, which must not be silent."""

import signal
import subprocess
import sys

from howl.broker import ledger
from howl.broker.room import Room

FAILS = """
import logging, time
from howl.broker.ledger import Ledger
from howl.broker.room import Room
from howl.config import load_settings

logging.basicConfig()
ledger = Ledger(load_settings(), "w1.life", Room(lambda: 1 // 0), print, print, print)
ledger.listen([["celery"]])
ledger.start()
time.sleep(60)
"""


def test_a_worker_whose_ledger_fails_says_so_and_ends(env):
    ended = subprocess.run(
        [sys.executable, "-c", FAILS], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert "The ledger has failed: this worker ends" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_what_is_said_in_one_turn_is_bounded_in_words_values_and_bytes(settings):
    talker = ledger.Ledger(settings, "w1.life", Room(lambda: 1, 1), print, print, print)
    for number in range(1500):
        talker.append(b"%d" % number)
    for _ in range(20):
        talker.append(b"x" * (1 << 20))
    talker._claims["tag"] = ledger.Claim("tag", b"q", b"", 0.0)
    talker.settle("tag", "id", [b"%d" % number for number in range(9500)])
    turns = []
    while words := talker._next_words():
        turns.append(words)
    assert max(map(len, turns)) == ledger.MOST
    assert max(sum(len(word.values) for word in words) for words in turns) <= ledger.MOST_VALUES + ledger.MOST + 1
    assert max(sum(len(value) for word in words for value in word.values if isinstance(value, bytes))
               for words in turns) <= ledger.MOST_BYTES + (1 << 20)  # fmt: skip
    said = [value for words in turns for word in words for value in word.values]
    assert [value for value in said[1520:] if value != "id"] == [b"%d" % number for number in range(9500)]
    assert turns[-1][-1].kind == "settle"


def test_a_worker_holds_no_more_messages_than_it_could_say_in_one_turn(settings):
    greedy = ledger.Ledger(settings, "w1.life", Room(lambda: 10**6, 10**6), print, print, print)
    greedy.listen([["celery"]])
    assert greedy._wants() > 0
    for number in range(ledger.MOST_HELD):
        greedy._claims[str(number)] = ledger.Claim(str(number), b"q", b"", 0.0, waiting=True)
        greedy._waiting += 1
    assert greedy._wants() == 0


def test_what_waits_for_a_slot_is_bounded_in_bytes(settings):
    greedy = ledger.Ledger(settings, "w1.life", Room(lambda: 10**6, 1), print, print, print)
    greedy.listen([["celery"]])
    message = b"x" * (1 << 20)
    while greedy._wants() > 0:
        assert 0 < greedy._wanted_bytes() <= ledger.MOST_BYTES
        tag = str(len(greedy._claims))
        greedy._claims[tag] = ledger.Claim(tag, b"q", message, 0.0)
        greedy._buffer.append(greedy._claims[tag])
    assert len(greedy._buffer) << 20 == ledger.AHEAD_BYTES
    assert greedy._wanted_bytes() == 0


def test_queues_that_gave_as_many_bytes_as_were_wanted_are_not_empty(settings):
    greedy = ledger.Ledger(settings, "w1.life", Room(lambda: 4, 1), print, print, print)
    for messages, is_empty in [([b"xx", b"xx"], True), ([b"xx", b"xx", b"xx"], False), ([b"x"] * 4, False)]:
        greedy._learn(messages, 4, 6, 0.001)
        assert greedy._empty == is_empty
