"""What `python -m benchmarks.hostile` measures, in short: two rows of it, and how a refusal is told from a failure."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.hostile import loops
from benchmarks.hostile.attacks import ATTACKS, CONTROL, find
from benchmarks.hostile.ground import Ground, Servers
from benchmarks.hostile.loops import Tally
from benchmarks.hostile.measure import MOST_MEMORY, Row, measure
from benchmarks.hostile.thief import MINE, THEIRS, THIEF, Thief
from howl.config import load_settings
from tests.helpers.servers import redis_server
from tests.helpers.support import eventually, servers_folder

pytestmark = pytest.mark.servers

#: An attack that costs next to nothing, and that no credential could be kept from.
CHEAP = "leave-flood"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    redis_server()
    home = servers_folder("howl-hostile-")
    try:
        with Servers(home) as made:
            yield made
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def ground(servers: Servers) -> Iterator[Ground]:
    """One for all, for each takes many seconds to start."""
    with Ground(servers, rate=50, concurrency=2) as made:
        yield made


def test_a_row_tells_what_the_neighbour_did_and_what_the_servers_grew_to(ground: Ground) -> None:
    row = measure("both", [CONTROL, CHEAP], lambda: nullcontext(ground), seconds=2, rounds=2, quiet=1)
    assert row.failure is None, row.notes
    assert [len(row.without), len(row.during), len(row.tallies)] == [2, 2, 2]
    assert min(row.without) > 5
    assert row.worst is not None
    assert 0 < (row.p99 or 0) <= row.worst
    assert 20 << 20 < row.server_memory < MOST_MEMORY
    assert 5 << 20 < row.nats_memory < MOST_MEMORY
    assert 0 < row.redis_memory < row.redis_limit == (640 + 128) << 20
    for tallies in row.tallies:
        ordinary, cheap = tallies.values()
        assert ordinary.passes > 0
        assert (ordinary.refused, ordinary.answer, ordinary.broken) == (0, "", False)
        assert cheap.passes + cheap.refused > 0


def test_what_the_credential_may_not_do_counts_as_refused(ground: Ground, servers: Servers) -> None:
    settings = load_settings(join=servers.provisioned.join(THIEF))
    thief = Thief(settings, until=0)

    async def ask(client: object) -> None:
        await client.publish("elsewhere", b"")  # type: ignore[attr-defined]

    foreign = [
        lambda _: thief.redis.flushall(),
        lambda _: thief.redis.lpush(settings.key(THEIRS), "x"),
        lambda _: thief.on_nats(ask),
        lambda _: thief.subject("no such kind"),
    ]
    said = [loops._once(attack, thief) for attack in foreign]
    assert [kind for kind, _ in said] == ["refused"] * len(foreign), said
    assert loops._once(find(CONTROL), thief) == ("passes", "")
    assert loops._once(lambda _: thief.redis.lpush(settings.key(MINE), "x"), thief) == ("passes", "")
    thief.redis.close()


def _runs(pid: int) -> bool:
    """A zombie does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def tally(**counts: int) -> Tally:
    zero = {"passes": 0, "refused": 0, "cut": 0, "busy": 0}
    return Tally(**(zero | counts), processor=0.0, answer="")  # type: ignore[arg-type]


def row(**figures: object) -> Row:
    good = {
        "without": [100.0, 90.0, 110.0], "during": [71.0], "worst": 5.0, "server_memory": MOST_MEMORY - 1,
        "nats_memory": MOST_MEMORY - 1, "redis_memory": 5, "redis_limit": 5, "tallies": [{"x": tally(passes=1)}],
    }  # fmt: skip
    return Row("x", **(good | figures))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({}, []), ({"during": [70.0]}, ["throughput"]), ({"during": []}, ["throughput"]),
        ({"without": []}, ["throughput"]), ({"worst": 5.1}, ["recorded"]), ({"worst": None}, ["recorded"]),
        ({"unrecorded": 1}, ["recorded"]), ({"server_memory": MOST_MEMORY}, ["howl server"]),
        ({"nats_memory": MOST_MEMORY}, ["NATS"]), ({"redis_memory": 6}, ["Redis"]), ({"redis_memory": 0}, ["Redis"]),
        ({"failure": "Redis did not start"}, ["not measured"]), ({"tallies": [{}]}, ["an attack broke"]),
    ],
)  # fmt: skip
def test_each_figure_that_is_missed_is_named(figures: dict[str, object], missed: list[str]) -> None:
    assert row(**figures).missed == missed


@pytest.mark.parametrize(
    ("counts", "refused"),
    [({"refused": 9}, True), ({"refused": 9, "cut": 1}, True), ({"refused": 9, "passes": 1}, False),
     ({"refused": 9, "busy": 1}, False), ({"cut": 1}, False)],
)  # fmt: skip
def test_an_attack_of_which_no_pass_went_through_is_refused(counts: dict[str, int], refused: bool) -> None:
    assert row(tallies=[{"x": tally(**counts)}]).is_refused is refused


def test_an_attack_that_does_not_come_back_is_killed_and_counted(ground: Ground) -> None:
    attackers = ground.attackers(1.0, [CHEAP])
    assert attackers.stdin is not None
    attackers.stdin.write("go\n")
    attackers.stdin.flush()
    (child,) = eventually(lambda: _children(attackers.pid))
    child_pid = int(child)
    _stop(child_pid)
    said, _ = attackers.communicate(timeout=30)
    (counts,) = json.loads(said).values()
    assert counts["cut"] >= 1
    assert not _runs(child_pid)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def test_what_ends_during_a_row_is_started_again_and_said(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("howl server", "redis"):
        pid = ground.pid(name)
        assert ground.attend(name, most=1 << 40) > 1 << 20
        ground.attend(name, most=1)  # killed: it is larger
        eventually(lambda name=name, pid=pid: ground.attend(name, most=1 << 40) and ground.pid(name) != pid)
        assert f"{name} ended" in ground.notes
        assert f"{name} ended" in capsys.readouterr().err
    assert ground.is_well(45)


def test_help_explains_every_attack() -> None:
    argv = [sys.executable, "-m", "benchmarks.hostile", "--help"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(f"  {name} " in said for name in ATTACKS)
    assert said.count("Right: ") == len(ATTACKS)
