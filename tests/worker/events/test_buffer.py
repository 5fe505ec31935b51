"""Events that wait: which are kept, which go, and how many fit into a message."""

import json
import threading

import pytest
from celery import Celery

from howl.worker.events.buffer import EventBuffer
from howl.worker.events.dispatcher import EventDispatcher, encode


def documents(count: int, size: int = 10) -> list[bytes]:
    return [json.dumps(f"{number:0{size - 2}}").encode() for number in range(count)]


def filled(count: int, **bounds: int) -> EventBuffer:
    buffer = EventBuffer(**bounds)
    for document in documents(count):
        buffer.add(document)
    return buffer


def test_events_are_taken_in_the_order_in_which_they_came() -> None:
    assert filled(5).take(1000) == (documents(5), False)


def test_of_too_many_events_the_oldest_go_and_are_counted_once() -> None:
    buffer = filled(8, most=5)
    assert (buffer.dropped(), buffer.dropped()) == (3, 0)
    assert buffer.take(1000) == (documents(8)[3:], False)


def test_of_too_large_events_the_oldest_go_and_are_counted() -> None:
    buffer = filled(8, most_bytes=55)
    assert buffer.dropped() == 3
    assert buffer.take(1000) == (documents(8)[3:], False)


def test_room_that_was_made_can_be_used() -> None:
    buffer = filled(5, most_bytes=55)
    buffer.take(1000)
    for document in documents(5):
        buffer.add(document)
    assert buffer.dropped() == 0


def test_what_is_taken_at_once_makes_a_list_of_no_more_than_so_many_bytes() -> None:
    buffer = filled(5)
    two, more = buffer.take(len(b"[%b]" % b",".join(documents(2))))
    assert (two, more) == (documents(2), True)
    one, more = buffer.take(len(b"[%b]" % b",".join(documents(2))) - 1)
    assert (one, more) == (documents(3)[2:], True)


def test_an_event_too_large_for_any_message_is_dropped_alone() -> None:
    buffer = EventBuffer()
    small, large = documents(1)[0], documents(1, size=100)[0]
    for document in (small, large, small):
        buffer.add(document)
    assert buffer.take(50) == ([small, small], False)
    assert (buffer.dropped(), bool(buffer)) == (1, False)


def test_somebody_is_called_when_the_first_event_comes_and_not_for_those_after_it() -> None:
    buffer, calls = EventBuffer(), []
    buffer.filled = lambda: calls.append(1)
    for document in documents(3):
        buffer.add(document)
    assert len(calls) == 1
    buffer.take(1000)
    buffer.add(b"1")
    assert len(calls) == 2


def test_threads_that_add_while_another_takes_lose_nothing() -> None:
    buffer, taken = EventBuffer(), []
    threads = [threading.Thread(target=lambda: [buffer.add(b"1") for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or buffer:
        taken += buffer.take(100)[0]
    assert (len(taken), buffer.dropped()) == (20_000, 0)


def test_an_event_of_what_json_does_not_know_is_still_told() -> None:
    assert json.loads(encode({"type": "task-odd", "result": b"bytes", "what": {1, 2}, "text": "\ud800"})) == {
        "type": "task-odd",
        "result": {"__type__": "bytes", "__value__": "bytes"},
        "what": "{1, 2}",
        "text": "\ud800",
    }


def test_an_event_that_cannot_be_written_harms_nobody(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    buffer, endless = EventBuffer(), []
    endless.append(endless)
    dispatcher = EventDispatcher(app, "celery@w1", tasks=True, show=buffer.add, beat=lambda: None)
    dispatcher.send("task-odd", uuid="some-task", result=endless)
    dispatcher.send("task-odd", uuid="another-task")
    assert "Event task-odd of some-task cannot be written" in caplog.text
    assert [json.loads(document)["uuid"] for document in buffer.take(1000)[0]] == ["another-task"]
