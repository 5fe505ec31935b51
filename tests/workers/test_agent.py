"""agent.run, called directly, with a small script in the agent's place."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from howl.errors import (
    AgentFailed,
    CommandNotStarted,
    CommandsNotAllowed,
    CommandTimedOut,
    InvalidRequest,
    NotConfigured,
    SettingsError,
)
from workers.agent import run
from workers.checkout import collect, workfolder

ROOT = Path(__file__).parents[2]
STAND_IN = """\
import hashlib, json, os, pathlib, sys
if "FAIL" in sys.argv:
    sys.exit("the tests do not pass")
last = pathlib.Path(sys.argv[-1])
digest = hashlib.sha256(last.read_bytes() if last.name == "prompt.md" else sys.stdin.buffer.read()).hexdigest()
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "read": digest}))
"""

#: Where somebody reads how an agent is set up.
DOCUMENTED = ("docs/agents.md", "docs/github-actions.md", ".env.example", "workers/agent.py", "howl/config.py")


@pytest.fixture
def agent(tmp_path: Path, owner_says: Callable[..., None]) -> Callable[..., None]:
    """`agent("-p {prompt}")` sets up a stand-in for an agent, which prints what it was given."""
    script = tmp_path / "stand in.py"
    script.write_text(STAND_IN)

    def set_up(arguments: str, **variables: str) -> None:
        owner_says(HOWL_AGENT_COMMAND=f"{sys.executable} '{script}' {arguments}", **variables)

    return set_up


@pytest.mark.parametrize(
    "prompt",
    [
        "fix the test",
        "a 'quoted' \"thing\" with $(id) `id` ; | & > * \\",
        "two\nlines\r\n\ttab",
        "braces {prompt} {0} {} {{x}}",
        "--force",
        "日本語 é \U0001f43a",
        " spaces ",
    ],
)
def test_a_prompt_reaches_the_agent_unchanged_as_one_argument(agent: Callable[..., None], prompt: str):
    agent("-p {prompt} --force")
    assert json.loads(run(prompt)["stdout"])["argv"] == ["-p", prompt, "--force"]


def test_a_template_may_put_the_prompt_inside_an_argument(agent: Callable[..., None]):
    agent("'--message={prompt}'")
    assert json.loads(run("a b")["stdout"])["argv"] == ["--message=a b"]


@pytest.mark.parametrize("arguments", ["-p --force", "--message-file {prompt_file}"])
@pytest.mark.parametrize("prompt", ["--help", "two\nlines\r\n{prompt} {prompt_file}", "ä" * 200_000])
def test_a_prompt_comes_on_standard_input_or_in_a_file_however_it_begins_and_however_long_it_is(
    agent: Callable[..., None], arguments: str, prompt: str, tmp_path: Path
):
    agent(arguments)
    for more in ({}, {"cwd": str(tmp_path)}):
        found = json.loads(run(prompt, **more)["stdout"])
        assert found["read"] == hashlib.sha256(prompt.encode()).hexdigest()
        assert len(found["argv"]) == 2


def test_a_prompt_that_is_too_long_for_an_argument_is_a_clear_error(agent: Callable[..., None]):
    agent("-p {prompt}")
    with pytest.raises(CommandNotStarted, match=r"prompt of 200,000 characters.*HOWL_AGENT_COMMAND.*\{prompt_file\}"):
        run("x" * 200_000)


@pytest.mark.parametrize("file", DOCUMENTED)
def test_no_documented_command_line_lets_a_prompt_be_taken_for_an_option(file: str):
    lines = re.findall(r"(?:cursor-agent|claude|codex)[^`\n]*", (ROOT / file).read_text())
    assert lines
    assert [line for line in lines if "{prompt}" in line.replace("-- {prompt}", "")] == []


def test_an_agent_without_any_limit_ends_after_the_time_that_its_worker_gives_it(script: Callable[..., Path]):
    script("sleep 60", HOWL_AGENT_TIMEOUT="0.2s")
    with pytest.raises(CommandTimedOut, match=r"HOWL_AGENT_TIMEOUT.*after 0\.2 s"):
        run("hello")


def test_a_task_with_a_limit_of_its_own_has_no_other(script: Callable[..., Path]):
    script("sleep 0.5; echo done", HOWL_AGENT_TIMEOUT="0.1s")
    assert run("hello", timeout=60)["stdout"] == "done\n"
    run.push_request(timelimit=[60, None])
    try:
        assert run.run("hello")["stdout"] == "done\n"
    finally:
        run.pop_request()


def test_an_agent_that_fails_is_a_failed_task_with_its_last_lines(agent: Callable[..., None]):
    agent("-p {prompt} FAIL")
    with pytest.raises(AgentFailed, match=r"exit status 1.*the tests do not pass"):
        run("fix it")


def test_an_agent_is_given_the_variables_its_owner_named_and_no_other(
    agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENT_KEY", "for the agent")
    monkeypatch.setenv("OTHER_KEY", "not for the agent")
    agent("{prompt}", HOWL_AGENT_ENV="AGENT_KEY, NEVER_SET")
    environment = json.loads(run("hello")["stdout"])["env"]
    assert environment["AGENT_KEY"] == "for the agent"
    assert not {"OTHER_KEY", "NEVER_SET", "HOWL_AGENT_COMMAND"} & set(environment)


@pytest.mark.parametrize("name", ["HOWL_REDIS_URL", "NATS_PASSWORD", "PGPASSWORD"])
def test_an_agent_is_never_given_what_leads_to_the_server(agent: Callable[..., None], name: str):
    agent("{prompt}", HOWL_AGENT_ENV=name)
    with pytest.raises(SettingsError, match=name):
        run("hello")


def test_an_agent_past_its_timeout_is_ended_with_its_tree(tree, time_out, owner_says: Callable[..., None]):
    owner_says(HOWL_AGENT_COMMAND=" ".join([*tree.argv(), "{prompt}"]))
    with pytest.raises(CommandTimedOut):
        run("hello", timeout=time_out(tree.is_complete))
    assert tree.is_gone()


def test_without_an_agent_the_error_names_the_variable_and_shows_an_example():
    with pytest.raises(NotConfigured, match=r"HOWL_AGENT_COMMAND.*cursor-agent -p --force"):
        run("hello")


def test_an_agent_that_is_not_installed_is_a_clear_error(owner_says: Callable[..., None]):
    owner_says(HOWL_AGENT_COMMAND="no-such-agent -p {prompt}")
    with pytest.raises(CommandNotStarted, match="no-such-agent"):
        run("hello")


@pytest.mark.parametrize("template", [" ", "{prompt}", "{prompt_file}", "agent 'open {prompt}"])
def test_a_template_that_cannot_work_is_refused(owner_says: Callable[..., None], template: str):
    owner_says(HOWL_AGENT_COMMAND=template)
    with pytest.raises(SettingsError, match="HOWL_AGENT_COMMAND"):
        run("hello")


@pytest.mark.parametrize("prompt", ["", " \n", "nul \0", 5, None])
def test_what_is_no_prompt_is_refused(agent: Callable[..., None], prompt: object):
    agent("{prompt}")
    with pytest.raises(InvalidRequest):
        run(prompt)


def test_a_permanent_worker_refuses_agents(agent: Callable[..., None]):
    agent("{prompt}", HOWL_WORKER_ORIGIN="server")
    with pytest.raises(CommandsNotAllowed, match="HOWL_ALLOW_COMMANDS=1"):
        run("hello")


def test_an_agent_works_in_a_new_folder_that_is_gone_afterwards(script: Callable[..., Path]):
    root = script("pwd; ls")
    folder, found = run("hello")["stdout"].split()
    assert Path(folder).is_relative_to(root)
    assert found == "artifacts"
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "exit 3",
        "sleep 60",
        "mkdir -p a/b; touch a/b/c; chmod 0 a/b a",
        "for i in $(seq 15); do mkdir -p $(printf 'd/%.0s' $(seq 100)); cd -P $(printf 'd/%.0s' $(seq 100)); done",
        "ln -s / root; ln -s .. artifacts/up",
        "rm -rf ../*",
    ],
)
def test_the_folder_is_gone_whatever_the_agent_made_of_it(script: Callable[..., Path], text: str):
    root = script(text)
    with contextlib.suppress(AgentFailed, CommandTimedOut):
        run("hello", timeout=10 if text != "sleep 60" else 1)
    assert list(root.iterdir()) == []


def test_folders_of_dead_workers_are_cleared_away_and_those_of_live_ones_stay(script: Callable[..., Path]):
    root = script("true")
    for name in ("dead", "dead-early", "live", "new"):
        (root / f"{workfolder.PREFIX}{name}" / "work").mkdir(parents=True)
    locks = {name: root / f"{workfolder.PREFIX}{name}" / workfolder.LOCK for name in ("dead", "live")}
    for lock in locks.values():
        lock.touch()
    for name in ("dead", "dead-early", "live"):
        os.utime(root / f"{workfolder.PREFIX}{name}", (0, 0))
    with locks["live"].open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run("hello")
    assert sorted(path.name.removeprefix(workfolder.PREFIX) for path in root.iterdir()) == ["live", "new"]


def test_a_work_folder_that_cannot_be_used_is_named_with_its_setting(owner_says, script, tmp_path: Path):
    script("true")
    owner_says(HOWL_WORK_FOLDER=str(tmp_path / "not there"))
    with pytest.raises(SettingsError, match=r"not there.*HOWL_WORK_FOLDER"):
        run("hello")


def test_in_a_folder_it_was_given_an_agent_leaves_its_files_where_they_are(script, kept, tmp_path: Path):
    script("pwd; mkdir artifacts; echo x > artifacts/x")
    result = run("hello", cwd=str(tmp_path))
    assert (result["stdout"], result["artifacts"], kept) == (f"{tmp_path}\n", [], {})
    assert (tmp_path / "artifacts" / "x").exists()


@pytest.mark.parametrize("more", [{"repository": "https://example.org/x"}, {"ref": "main"}])
def test_a_folder_and_a_repository_do_not_go_together(script: Callable[..., Path], tmp_path: Path, more: dict):
    script("true")
    with pytest.raises(InvalidRequest, match="cwd or repository"):
        run("hello", cwd=str(tmp_path), **more)


def test_files_in_artifacts_are_kept_under_names_without_folders(script, kept: dict[str, bytes]):
    script(
        "cd artifacts; mkdir -p shots/big; echo 1 > a.txt; echo 2 > shots/b.txt; echo 3 > shots/big/c.txt; echo > ../d"
    )
    result = run("hello")
    assert kept == {"a.txt": b"1\n", "shots-b.txt": b"2\n", "shots-big-c.txt": b"3\n"}
    assert [each["name"] for each in result["artifacts"]] == ["a.txt", "shots-b.txt", "shots-big-c.txt"]
    assert result["refused"] == []


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("mkdir a; echo 1 > a-b; echo 2 > a/b", [("a/b", "another file is called a-b")]),
        ("ln -s /etc/passwd users", [("users", "is a link")]),
        ("ln -s /etc users", [("users", "is a link")]),
        ("rmdir ../artifacts; ln -s /etc ../artifacts", [("artifacts", "is a link")]),
        ("echo > refuse.me", [("refuse.me", "as told")]),
        ("rmdir ../artifacts; echo > ../artifacts", []),
        ("rmdir ../artifacts", []),
    ],
)
def test_what_is_not_kept_is_told(script, kept: dict[str, bytes], text: str, refused: list[tuple[str, str]]):
    script(f"cd artifacts; {text}")
    found = run("hello")["refused"]
    assert [each["name"] for each in found] == [name for name, _ in refused]
    assert all(why in each["why"] for each, (_, why) in zip(found, refused, strict=True))
    assert set(kept) <= {"a-b"}


def test_very_many_files_are_neither_all_kept_nor_all_told(script, kept: dict[str, bytes]):
    script("cd artifacts; touch $(seq 10000 10349)")
    result = run("hello")
    assert len(kept) == len(result["artifacts"]) == 100
    assert len(result["refused"]) == 21
    assert result["refused"][-1] == {"name": "", "why": "and 230 more"}


def test_very_deep_folders_end_in_an_answer(script, kept: dict[str, bytes]):
    script(
        "cd artifacts; for i in $(seq 12); do mkdir -p $(printf 'd/%.0s' $(seq 100));"
        " cd -P $(printf 'd/%.0s' $(seq 100)); done; echo x > x"
    )
    result = run("hello", timeout=30)
    assert len(result["artifacts"]) + len(result["refused"]) == 1


@pytest.mark.parametrize(("end", "error"), [("exit 1", AgentFailed), ("sleep 60", CommandTimedOut)])
def test_what_an_agent_left_before_it_failed_is_kept(script, time_out, kept: dict[str, bytes], end: str, error: type):
    root = script(f"echo half > half.txt; mv half.txt artifacts; {end}")
    with pytest.raises(error):
        run("hello", timeout=time_out(lambda: end != "exit 1" and list(root.glob("*/work/artifacts/half.txt"))))
    assert kept == {"half.txt": b"half\n"}


def test_called_as_a_function_it_says_why_nothing_is_kept(script: Callable[..., Path]):
    script("echo x > artifacts/x")
    (refused,) = run("hello")["refused"]
    assert (refused["name"], "call it within one" in refused["why"]) == ("x", True)


def test_the_fullest_answer_still_fits_an_outcome(script, monkeypatch: pytest.MonkeyPatch):
    script(
        "head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; cd artifacts;"
        " for i in $(seq 150); do touch $i$(printf 'é%.0s' $(seq 120)); done"
    )
    described = {"media_type": "a" * 129, "size": 2**62, "sha256": "0" * 64}
    monkeypatch.setattr(collect, "artifact", lambda _path, name, _media_type: {"name": name, **described})
    result = run("hello", timeout=60)
    assert (len(result["artifacts"]), len(result["refused"])) == (100, 21)
    assert len(json.dumps(result)) < 1 << 20
