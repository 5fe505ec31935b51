"""`howl init`, as a person meets it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from howl.cli import main
from howl.join import decode


@pytest.fixture
def out() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="howl-init-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def test_it_says_what_it_made_and_what_comes_next(out: Path):
    answer = run("--host", "my.server", "--out", out)
    assert answer.exit_code == 0
    assert "made    howl-server/redis/users.acl" in answer.output
    assert "docker compose up --detach --build" in answer.output
    assert "howl init join | gh secret set HOWL_JOIN" in answer.output


def test_run_again_it_says_what_it_kept(out: Path):
    run("--host", "my.server", "--out", out)
    answer = run("--out", out)
    assert answer.exit_code == 0
    assert {line.split()[0] for line in answer.output.split("\n\n")[0].splitlines()} == {"kept"}
    assert "Nothing had to be changed." in answer.output


def test_it_prints_no_secret(out: Path):
    said = run("--host", "my.server", "--out", out).output + run("rotate", "flower", "--out", out).output
    values = [line.partition("=")[2] for line in (out / ".env").read_text().splitlines() if "PASSWORD" in line]
    assert values
    assert not [value for value in values if value in said]


def test_the_join_string_is_all_that_goes_to_standard_output(out: Path):
    run("--host", "my.server", "--out", out)
    answer = run("join", "--out", out)
    join = decode(answer.stdout)
    assert (join.host, join.user, join.queues) == ("my.server", "worker", ())
    assert join.ca == (out / "howl-server" / "clients" / "ca.crt").read_text()


def test_the_join_string_names_the_ports_and_prefixes_of_this_server(out: Path):
    (out / ".env").write_text("REDIS_PORT=7379\nNATS_PORT=5222\nHOWL_KEY_PREFIX=mine:\nHOWL_SUBJECT_PREFIX=mine\n")
    run("--host", "my.server", "--out", out)
    join = decode(run("join", "--out", out).stdout)
    assert (join.redis_port, join.nats_port, join.key_prefix, join.subject_prefix) == (7379, 5222, "mine:", "mine")
    assert "~mine:" in (out / "howl-server" / "redis" / "users.acl").read_text()


def test_a_join_string_asked_for_twice_is_the_same(out: Path):
    run("--host", "my.server", "--out", out)
    strings = [run("join", "--queues", "web,screens", "--out", out).stdout for _ in range(2)]
    assert strings[0] == strings[1]


@pytest.mark.timeout(30)  # a person waits for it
def test_a_server_that_does_not_run_learns_of_a_rotation_when_it_starts(out: Path):
    (out / ".env").write_text("REDIS_PORT=1\nNATS_PORT=1\n")
    run("--host", "my.server", "--out", out)
    users = out / "howl-server" / "redis" / "users.acl"
    before = users.read_text()
    answer = run("rotate", "worker", "--out", out)
    assert answer.exit_code == 0
    assert "Redis: not told (" in answer.output
    assert "NATS: not told (" in answer.output
    changed = [line.split()[1] for line in users.read_text().splitlines() if line not in before]
    assert changed == ["worker"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "--host my.server"),
        (["--host", "https://my.server"], 2, "is no host"),
        (["--host", "my.server:6379"], 2, "is no host"),
        (["--host", "-v"], 2, "is no host"),
        (["--host", "my.server", "--publish", "eth0"], 2, "is no IP address"),
        (["--host", "my.server", "--ca", __file__], 2, "--cert and --key go together"),
        (["--host", "my.server", "--cert", __file__, "--key", __file__], 1, "Clients would refuse"),
        (["rotate", "worker"], 1, "run `howl init --host NAME` first"),
        (["join"], 1, "run `howl init --host NAME` first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_said_in_one_line(out: Path, arguments: list[str], status: int, words: str):
    answer = run(*arguments, "--out", out)
    assert (answer.exit_code, words in answer.output.splitlines()[-1]) == (status, True), answer.output
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rotate", "nobody"], "There is no credential 'nobody'; there are"),
        (["join", "--name", "server"], "cannot be called 'server'"),
        (["join", "--name", "UP!", "--queues", "a"], "cannot be called 'UP!'"),
        (["join", "--name", "worker", "--queues", "a"], "is for other queues"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_the_server_is_refused(out: Path, arguments: list[str], words: str):
    run("--host", "my.server", "--out", out)
    answer = run(*arguments, "--out", out)
    assert answer.exit_code == 1
    assert words in answer.output


def test_a_damaged_state_is_not_made_anew(out: Path):
    run("--host", "my.server", "--out", out)
    (out / "howl-server" / "server.json").write_text("{")
    answer = run("--out", out)
    assert (answer.exit_code, "put its backup back" in answer.output) == (1, True)
