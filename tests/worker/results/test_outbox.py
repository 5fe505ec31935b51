"""The outbox: what a pool's child writes arrives whole or not at all, and before its end is known."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.loaders.base import BaseLoader

from howl.outcomes import ChordCreated, Outcome
from howl.worker.results.outbox import (
    END,
    HEADER,
    LAST,
    OTHER,
    PREFIX,
    PROGRESS,
    SETTLED,
    SIGHT,
    Collector,
    Outbox,
    Parcel,
    Sender,
    parcel,
)
from howl.worker.task import reporter
from howl.worker.task.context import log
from tests.helpers.support import eventually

ROOT = Path(__file__).parents[3]
AT = "2026-11-22T12:00:00+00:00"


@pytest.fixture
def collected():
    """A collector without its thread, and what it has delivered."""
    parcels: list[Parcel] = []
    collector = Collector()
    collector.deliver = parcels.append
    yield collector, parcels
    collector.close()


@pytest.fixture
def child(collected):
    """A connection as a child has one, to write bytes of any kind to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(collected[0].address)
        yield connection


@pytest.fixture
def sender(collected):
    """A child's side."""
    made = Sender(collected[0].address)
    yield made
    if made._socket is not None:
        made._socket.close()


def _parcel(number: int = 0, document: bytes = b"{}") -> Parcel:
    return Parcel(END, f"owner:1:{number}", f"tâche-{number}", document)


def _frame(item: Parcel) -> bytes:
    tag, task_id = item.tag.encode(), item.task_id.encode()
    return HEADER.pack(item.kind, len(tag), len(task_id), len(item.document)) + tag + task_id + item.document


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (Outcome(task_id="t", state="HALFWAY", at=AT), PROGRESS),
        (Outcome(task_id="t", state="RETRY", at=AT), END),
        (Outcome(task_id="t", state="SUCCESS", at=AT), LAST),
        (Outcome(task_id="t", state="FAILURE", at=AT), END),
        (Outcome(task_id="t", state="REVOKED", at=AT), LAST),
        (ChordCreated(group_id="g"), OTHER),
    ],
    ids=lambda value: getattr(value, "state", None),
)
def test_an_entry_is_progress_an_end_a_last_word_or_belongs_to_no_task(entry, kind):
    assert parcel(entry, b"", "tag").kind == kind


def test_a_parcel_arrives_as_it_was_sent_as_soon_as_somebody_reads(collected, sender):
    collector, parcels = collected
    sent = _parcel(document=bytes(range(256)))
    sender.send(sent)
    collector.read()
    assert parcels == [sent]


def test_a_parcel_of_many_megabytes_arrives_whole(collected, sender):
    collector, parcels = collected
    sent = _parcel(document=os.urandom(1 << 20) * 8)
    sending = threading.Thread(target=sender.send, args=(sent,))
    sending.start()
    eventually(lambda: collector.read() or parcels)
    sending.join()
    assert parcels == [sent]


def test_frames_arrive_in_order_however_they_are_cut(collected, child):
    collector, parcels = collected
    sent = [_parcel(number, b"x" * number) for number in range(5)]
    for byte in b"".join(map(_frame, sent)):
        child.sendall(bytes([byte]))
        collector.read()
    assert parcels == sent


def test_frames_that_come_together_are_told_apart(collected, child):
    collector, parcels = collected
    sent = [_parcel(number) for number in range(1000)]
    child.sendall(b"".join(map(_frame, sent)))
    collector.read()
    assert parcels == sent


def test_children_do_not_mix(collected):
    collector, parcels = collected
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other,
    ):
        one.connect(collector.address)
        other.connect(collector.address)
        frame = _frame(_parcel(1))
        one.sendall(frame[:20])
        other.sendall(_frame(_parcel(2)))
        collector.read()
        one.sendall(frame[20:])
        collector.read()
    assert parcels == [_parcel(2), _parcel(1)]


def test_a_child_that_dies_within_a_frame_takes_only_that_frame_with_it(collected, sender):
    collector, parcels = collected
    script = f"""
import os, signal
from howl.worker.results.outbox import Parcel, Sender
sender = Sender({collector.address!r})
sender.send(Parcel(2, "owner:1:1", "whole", b"{{}}"))
sender._socket.sendall({_frame(_parcel(2))[:-1]!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=30, check=False)
    assert died.returncode == -signal.SIGKILL
    collector.read()
    sender.send(_parcel(3))
    collector.read()
    assert [item.task_id for item in parcels] == ["whole", "tâche-3"]


def test_names_that_are_no_text_are_replaced_and_their_neighbours_arrive(collected, child):
    collector, parcels = collected
    child.sendall(HEADER.pack(END, 2, 2, 2) + b"\xff\xfe" + b"\xff\xfe" + b"{}" + _frame(_parcel(1)))
    collector.read()
    assert [item.task_id for item in parcels] == ["\ufffd\ufffd", "tâche-1"]


def test_what_is_for_those_who_watch_is_shown_to_them_alone(collected, sender):
    collector, parcels = collected
    seen: list[bytes] = []
    collector.show = seen.append
    sender.send(Parcel(SIGHT, "", "", b'{"type": "task-log"}'))
    sender.send(_parcel())
    collector.read()
    assert seen == [b'{"type": "task-log"}']
    assert parcels == [_parcel()]


def test_while_nobody_watches_it_is_dropped(collected, sender):
    collector, parcels = collected
    sender.send(Parcel(SIGHT, "", "", b"{}"))
    sender.send(_parcel())
    collector.read()
    assert parcels == [_parcel()]


@pytest.mark.parametrize(("state", "kind"), [("SUCCESS", LAST), ("FAILURE", END), ("RETRY", END)])
def test_what_a_run_told_is_shown_before_its_outcome_is_delivered(state, kind):
    parent = SimpleNamespace(app=SimpleNamespace(loader=BaseLoader(None)))
    outbox, arrived = Outbox(parent), []
    outbox.collector.show = lambda document: arrived.append(json.loads(document)["lines"])
    outbox.collector.deliver = lambda item: arrived.append(item.kind)
    reporter.begin(parent.app.howl_show, "t", "celery@test")
    log("at once")
    eventually(lambda: arrived)
    log("a moment later")
    parent.app.howl_outbox(Outcome(task_id="t", state=state, at=AT), b"{}", "tag")
    reporter.end()
    outbox.collector.close()
    assert arrived == [["at once"], ["a moment later"], kind]


class Struck(Exception):
    """Raised by a signal, like a soft time limit."""


@pytest.fixture
def strike_soon():
    """The main thread is interrupted a moment after something has become so."""

    def strike(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGUSR1, strike)
    waiting = []

    def wait(begun):
        eventually(begun)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR1)

    def strike_after(begun):
        waiting.append(threading.Thread(target=wait, args=(begun,)))
        waiting[0].start()

    yield strike_after
    waiting[0].join()
    signal.signal(signal.SIGUSR1, before)


def test_an_exception_in_the_middle_of_a_frame_spoils_none_that_follow(collected, sender, strike_soon):
    collector, parcels = collected
    sender.send(_parcel(1))
    strike_soon(sender._lock.locked)
    with pytest.raises(Struck):
        sender.send(_parcel(2, b"x" * (8 << 20)))  # more than the socket holds, and nobody reads
    sender.send(_parcel(3))
    collector.read()
    assert sorted(parcels, key=lambda item: item.tag) == [_parcel(1), _parcel(3)]


def test_what_was_written_before_the_close_is_delivered_and_the_address_is_gone(collected, sender):
    collector, parcels = collected
    sender.send(_parcel())
    collector.close()
    assert parcels == [_parcel()]
    assert not Path(collector.address).parent.exists()


def test_a_sender_whose_parent_is_gone_says_so(collected, sender):
    collector, _ = collected
    sender.send(_parcel())
    collector.close()
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
        sender.send(_parcel())


def test_only_this_user_can_speak_for_a_child(collected):
    collector, _ = collected
    assert Path(collector.address).parent.stat().st_mode & 0o077 == 0


def test_the_thread_reads_by_itself_and_whoever_settles_does_not_wait_for_it(collected, sender):
    collector, parcels = collected
    collector.start()
    for number in range(200):
        sender.send(_parcel(number))
        collector.read()
        assert parcels[-1] == _parcel(number)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder with nobody else's outboxes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _aged(folder):
    """As if it had been made a while ago."""
    then = time.time() - 2 * SETTLED
    os.utime(folder, (then, then))
    return folder


def _left_by_a_killed_worker(temporary):
    script = "import os, signal; from howl.worker.results.outbox import Collector; "
    script += "print(Collector().address, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    died = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)},
                          capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    return Path(died.stdout.strip()).parent


def test_an_outbox_has_a_socket_however_long_the_path_of_the_folder_for_temporary_files_is(temporary, monkeypatch):
    deep = temporary / ("x" * 150)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    collector = Collector()
    assert len(collector.address) < 60
    sender = Sender(collector.address)
    collector.deliver = (parcels := []).append
    sender.send(_parcel(1))
    eventually(lambda: collector.read() or parcels)
    sender._hang_up()
    collector.close()
    assert not Path(collector.address).parent.exists()


def test_what_a_killed_worker_left_is_cleared_away_by_the_next_and_a_living_ones_is_not(temporary):
    dead = _aged(_left_by_a_killed_worker(temporary))
    living = Collector()
    _aged(Path(living.address).parent)
    just_made = temporary / f"{PREFIX}without-a-socket-yet"
    just_made.mkdir()
    last = Collector()
    assert sorted(temporary.iterdir()) == sorted([Path(living.address).parent, just_made, Path(last.address).parent])
    assert not dead.exists()
    last.close()
    living.close()
    just_made.rmdir()


def test_what_is_not_an_outboxs_is_left_where_it_is(temporary):
    for name in ("somebody-elses", f"{PREFIX}with-more-in-it"):
        (temporary / name).mkdir()
        (temporary / name / "file").touch()
        _aged(temporary / name)
    (temporary / f"{PREFIX}a-link").symlink_to(temporary / "somebody-elses")
    Collector().close()
    assert {path.name for path in temporary.iterdir()} == {
        "somebody-elses", f"{PREFIX}with-more-in-it", f"{PREFIX}a-link"
    }  # fmt: skip
    assert (temporary / "somebody-elses" / "file").exists()
