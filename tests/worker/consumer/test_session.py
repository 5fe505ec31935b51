"""What the session says and holds at most, and its own failure, which must not be silent."""

import signal
import subprocess
import sys

from howl.worker.consumer import session
from howl.worker.consumer.prefetch import PrefetchPolicy

FAILS = """
import logging, time
from howl.worker.consumer.session import ConsumerSession
from howl.worker.consumer.prefetch import PrefetchPolicy
from howl.config import load_settings

logging.basicConfig()
talk = ConsumerSession(load_settings(), "w1.life", PrefetchPolicy(lambda: 1 // 0), print, print, print)
talk.listen([["celery"]])
talk.start()
time.sleep(60)
"""


def test_a_worker_whose_session_fails_says_so_and_ends(env):
    ended = subprocess.run(
        [sys.executable, "-c", FAILS], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert "The session has failed: this worker ends" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_what_is_said_in_one_turn_is_bounded_in_words_values_and_bytes(settings):
    talker = session.ConsumerSession(settings, "w1.life", PrefetchPolicy(lambda: 1, 1), print, print, print)
    for number in range(1500):
        talker.append(b"%d" % number)
    for _ in range(20):
        talker.append(b"x" * (1 << 20))
    talker._claims["tag"] = session.Claim("tag", b"q", b"", 0.0)
    talker.settle("tag", "id", [b"%d" % number for number in range(9500)])
    turns = []
    while words := talker._next_commands():
        turns.append(words)
    assert max(map(len, turns)) == session.MOST
    assert max(sum(len(word.values) for word in words) for words in turns) <= session.MOST_VALUES + session.MOST + 1
    assert max(sum(len(value) for word in words for value in word.values if isinstance(value, bytes))
               for words in turns) <= session.MOST_BYTES + (1 << 20)  # fmt: skip
    said = [value for words in turns for word in words for value in word.values]
    assert [value for value in said[1520:] if value != "id"] == [b"%d" % number for number in range(9500)]
    assert turns[-1][-1].kind == "settle"


def test_a_worker_holds_no_more_messages_than_it_could_say_in_one_turn(settings):
    greedy = session.ConsumerSession(settings, "w1.life", PrefetchPolicy(lambda: 10**6, 10**6), print, print, print)
    greedy.listen([["celery"]])
    assert greedy._wants() > 0
    for number in range(session.MOST_HELD):
        greedy._claims[str(number)] = session.Claim(str(number), b"q", b"", 0.0, waiting=True)
        greedy._waiting += 1
    assert greedy._wants() == 0


def test_what_waits_for_a_slot_is_bounded_in_bytes(settings):
    greedy = session.ConsumerSession(settings, "w1.life", PrefetchPolicy(lambda: 10**6, 1), print, print, print)
    greedy.listen([["celery"]])
    message = b"x" * (1 << 20)
    while greedy._wants() > 0:
        assert 0 < greedy._wanted_bytes() <= session.MOST_BYTES
        tag = str(len(greedy._claims))
        greedy._claims[tag] = session.Claim(tag, b"q", message, 0.0)
        greedy._buffer.append(greedy._claims[tag])
    assert len(greedy._buffer) << 20 == session.AHEAD_BYTES
    assert greedy._wanted_bytes() == 0


def test_queues_that_gave_as_many_bytes_as_were_wanted_are_not_empty(settings):
    greedy = session.ConsumerSession(settings, "w1.life", PrefetchPolicy(lambda: 4, 1), print, print, print)
    for messages, is_empty in [([b"xx", b"xx"], True), ([b"xx", b"xx", b"xx"], False), ([b"x"] * 4, False)]:
        greedy._learn(messages, 4, 6, 0.001)
        assert greedy._empty == is_empty
