"""command.run, called directly."""

import json
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from howl.errors import CommandFailed, CommandNotStarted, CommandsNotAllowed, CommandTimedOut, InvalidRequest
from tests.helpers.support import eventually
from tests.workers.conftest import is_running
from workers.command import run
from workers.process.output import OUTPUT_LIMIT, Output

PYTHON = sys.executable


def python(program: str) -> list[str]:
    return [PYTHON, "-c", program]


def peak_memory() -> int:
    """Bytes of memory this process held at most since the peak was last reset."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def test_a_command_returns_its_status_both_streams_and_its_pid():
    result = run(python("import os, sys; print(os.getpid()); print('oh', file=sys.stderr); sys.exit(3)"))
    assert result["exit_status"] == 3
    assert result["stdout"] == f"{result['pid']}\n"
    assert result["stderr"] == "oh\n"
    assert not result["stdout_truncated"]
    assert 0 < result["duration"] < 20
    assert json.loads(json.dumps(result)) == result


def test_a_command_ended_by_a_signal_has_its_negative_number_as_status():
    assert run(["sh", "-c", "kill -9 $$"])["exit_status"] == -9


def test_arguments_reach_a_command_as_they_are():
    hostile = ["$(id)", "a b", "'\"", "*", "new\nline", "", "-x", "é"]
    assert run(python("import json, sys; print(json.dumps(sys.argv[1:]))") + hostile)["stdout"] == (
        json.dumps(hostile) + "\n"
    )


def test_a_command_runs_in_the_folder_it_was_given(tmp_path: Path):
    assert run(["pwd"], cwd=str(tmp_path))["stdout"] == f"{tmp_path}\n"


def test_a_large_input_and_a_large_output_do_not_block_each_other():
    result = run(["cat"], input="0123456789" * 1_000_000, timeout=60)
    assert result["exit_status"] == 0
    assert result["stdout_truncated"]


def test_input_that_nobody_reads_is_no_error():
    assert run(["true"], input="x" * 1_000_000, timeout=60)["exit_status"] == 0


def test_without_input_a_command_reads_an_empty_stream():
    assert run(["cat"], timeout=60)["stdout"] == ""


def test_long_output_keeps_its_beginning_and_its_end():
    result = run(python("print('first'); print('x' * 200_000); print('last')"))
    assert result["stdout"].startswith("first\nxx")
    assert result["stdout"].endswith("xx\nlast\n")
    assert re.search(r"\n\[\.\.\. \d+ bytes left out \.\.\.\]\n", result["stdout"])
    assert len(result["stdout"]) < OUTPUT_LIMIT + 100


def test_output_is_kept_whole_up_to_the_limit_however_it_is_cut():
    data = bytes(range(97, 123)) * 4
    for size in range(1, 60):
        output = Output(limit=100)
        for start in range(0, 100, size):
            output.add(data[start : min(start + size, 100)])
        assert output.text().encode() == data[:100]
        output.add(b"!")
        assert output.text().encode() == data[:50] + b"\n[... 1 bytes left out ...]\n" + data[51:100] + b"!"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_command_that_prints_without_end_costs_the_worker_no_memory():
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    result = run(python("import os\nfor _ in range(4600): os.write(1, b'y' * 65536)"), timeout=100)
    assert int(re.findall(r"(\d+) bytes left out", result["stdout"])[0]) > 300_000_000
    assert peak_memory() - before < 20_000_000


def test_output_that_is_not_utf_8_is_shown_with_replacement_characters():
    assert run(python(r"import os; os.write(1, b'a\xff\xfeb\0')"))["stdout"] == "a\ufffd\ufffdb\0"


def test_the_worst_output_still_fits_an_outcome():
    program = python("import os\nfor _ in range(10): os.write(1, bytes(65536)); os.write(2, bytes(65536))")
    assert len(json.dumps(run(program))) < 1 << 20


def test_a_command_sees_the_allowed_variables_and_its_own_and_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOWL_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    for name in ("REDIS_PASSWORD", "NATS_PASSWORD", "CELERY_BROKER_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_TIME", "C")
    result = run(["env"], env={"MINE": "yes"})
    assert "secret" not in result["stdout"]
    assert "MINE=yes\n" in result["stdout"]
    assert "LC_TIME=C\n" in result["stdout"]
    assert f"PATH={os.environ['PATH']}\n" in result["stdout"]


def test_a_variable_of_the_callers_own_may_have_any_name():
    assert "HOWL_HOME=/else\n" in run(["env"], env={"HOWL_HOME": "/else"})["stdout"]


def test_a_command_past_its_timeout_fails_with_its_last_lines(tree, time_out):
    with pytest.raises(CommandTimedOut, match=r"after 60 s.*three processes are running"):
        run(tree.argv(), timeout=time_out(tree.is_complete))


def test_the_last_lines_of_a_command_past_its_timeout_are_those_of_both_streams(time_out, tmp_path: Path):
    """What a shell says on standard error of its own end is not why it took so long."""
    program = "echo so far; trap 'echo Terminated >&2; exit 1' TERM; touch ready; while :; do sleep 0.05; done"
    with pytest.raises(CommandTimedOut, match=r"(?s)so far.*Terminated"):
        run(["sh", "-c", program], cwd=str(tmp_path), timeout=time_out((tmp_path / "ready").exists))


def test_a_timeout_ends_the_whole_tree_even_a_daemon(tree, time_out):
    with pytest.raises(CommandTimedOut):
        run(tree.argv(), timeout=time_out(tree.is_complete))
    assert tree.is_gone()


def test_a_command_that_ended_in_time_is_not_late_because_the_worker_slept(time_out, tmp_path: Path):
    supervisor, go = tmp_path / "supervisor", tmp_path / "go"

    def slept() -> bool:
        """Until the supervisor is gone as well, which has said all by then."""
        if not (supervisor.exists() and supervisor.read_text()):
            return False
        go.touch()
        return bool(eventually(lambda: not is_running(int(supervisor.read_text()))))

    program = "echo $PPID > supervisor; until [ -e go ]; do sleep 0.05; done; seq 5000"
    result = run(["sh", "-c", program], cwd=str(tmp_path), timeout=time_out(slept))
    assert (result["exit_status"], result["stdout"][-5:]) == (0, "5000\n")


def test_what_a_command_leaves_in_the_background_is_ended_with_it(tree):
    assert run(tree.argv("leave"), timeout=60)["exit_status"] == 0
    assert tree.is_gone()


def test_a_program_that_heeds_sigterm_is_given_time_to_put_things_in_order(time_out, tmp_path: Path):
    program = "trap 'echo tidied >&2; exit 0' TERM; touch ready; while :; do sleep 0.05; done"
    with pytest.raises(CommandTimedOut, match="tidied"):
        run(["sh", "-c", program], cwd=str(tmp_path), timeout=time_out((tmp_path / "ready").exists))


def test_a_guard_that_is_killed_takes_its_command_and_its_group_along(tree):
    kill = f"until [ -e {tree.notes} ]; do sleep 0.05; done; kill -9 $PPID"
    with pytest.raises(CommandFailed, match="lost its supervisor"):
        run(["sh", "-c", f"{' '.join(tree.argv())} & {kill}; sleep 60"], timeout=60)
    eventually(lambda: len(tree.pids) == 3 and not any(map(is_running, tree.pids[:2])))


@pytest.mark.parametrize(
    ("argv", "cwd", "message"),
    [
        (["no-such-program"], None, "'no-such-program' could not be started: No such file"),
        (["true"], "/no/such/folder", "No such file or directory: /no/such/folder"),
        (["/etc/passwd"], None, "Permission denied"),
        (["true", "x" * 200_000], None, "Argument list too long: give what is long on its standard input"),
    ],
)
def test_what_cannot_be_started_is_a_clear_error(argv: list[str], cwd: str | None, message: str):
    with pytest.raises(CommandNotStarted, match=message):
        run(argv, cwd=cwd)


@pytest.mark.parametrize(
    "arguments",
    [
        {"argv": []},
        {"argv": "ls -l"},
        {"argv": [""]},
        {"argv": ["echo", 1]},
        {"argv": ["echo", "\0"]},
        {"argv": ["echo", "\ud800"]},
        {"argv": ["true"], "env": {"A=B": "c"}},
        {"argv": ["true"], "env": {"": "c"}},
        {"argv": ["true"], "env": {"A": None}},
        {"argv": ["true"], "env": ["A"]},
        {"argv": ["true"], "cwd": "\0"},
        {"argv": ["true"], "input": 5},
        {"argv": ["true"], "timeout": 0},
        {"argv": ["true"], "timeout": "soon"},
        {"argv": ["true"], "timeout": float("nan")},
    ],
    ids=repr,
)
def test_arguments_that_make_no_command_are_refused(arguments: dict):
    with pytest.raises(InvalidRequest):
        run(**arguments)


def test_a_permanent_worker_refuses_commands(owner_says: Callable[..., None]):
    owner_says(HOWL_WORKER_ORIGIN="server")
    with pytest.raises(CommandsNotAllowed, match="HOWL_ALLOW_COMMANDS=1"):
        run(["true"])


def test_a_permanent_worker_whose_owner_agrees_runs_commands(owner_says: Callable[..., None]):
    owner_says(HOWL_WORKER_ORIGIN="server", HOWL_ALLOW_COMMANDS="1")
    assert run(["true"])["exit_status"] == 0


def test_errors_survive_the_way_through_celery():
    with pytest.raises(CommandTimedOut) as caught:
        run(["sleep", "60"], timeout=0.2)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as Celery's pool does
    assert type(again)(*again.args).args == caught.value.args
    assert json.dumps(caught.value.args)


def test_a_short_command_takes_no_noticeable_time():
    assert min(_seconds_for(["true"]) for _ in range(5)) < 1  # the machine is busy with something else at times


def _seconds_for(argv: list[str]) -> float:
    started = time.monotonic()
    run(argv)
    return time.monotonic() - started
