"""agent.run, called directly, with a small script in the agent's place."""

import json
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

STAND_IN = """\
import json, os, sys
if "FAIL" in sys.argv:
    sys.exit("the tests do not pass")
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
"""


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


def test_an_agent_past_its_timeout_is_ended_with_its_tree(tree, owner_says: Callable[..., None]):
    owner_says(HOWL_AGENT_COMMAND=" ".join([*tree.argv(), "{prompt}"]))
    with pytest.raises(CommandTimedOut):
        run("hello", timeout=1)
    assert tree.is_gone()


def test_without_an_agent_the_error_names_the_variable_and_shows_an_example():
    with pytest.raises(NotConfigured, match=r"HOWL_AGENT_COMMAND.*cursor-agent -p \{prompt\} --force"):
        run("hello")


def test_an_agent_that_is_not_installed_is_a_clear_error(owner_says: Callable[..., None]):
    owner_says(HOWL_AGENT_COMMAND="no-such-agent -p {prompt}")
    with pytest.raises(CommandNotStarted, match="no-such-agent"):
        run("hello")


@pytest.mark.parametrize("template", ["agent -p", "{prompt}", "agent 'open {prompt}"])
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
