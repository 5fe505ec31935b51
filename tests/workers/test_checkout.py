"""Agents on a checkout that a real git serves: what they get, what is told of it, and what git is kept from."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from howl.errors import AgentFailed, CheckoutFailed, CommandTimedOut, InvalidRequest, SettingsError
from tests.helpers.git_server import TIMEOUT, GitServer, commit, git
from workers.agent import run
from workers.checkout import checkout

FILES: dict[str, bytes | None] = {
    "README": b"one\ntwo\n",
    "deep/er/bytes.bin": bytes(range(256)) * 8,
    "to go": b"x\n",
    "artifacts/brought.txt": b"from the repository\n",
    "umlaut-\udce4".encode("utf-8", "surrogateescape").decode("latin-1"): b"x",
}
CHANGE = (
    r"echo three >> README; rm 'to go'; printf '\377\000\n\r' > deep/er/bytes.bin; mkdir new; echo n > 'new/ä file'"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    commit(tmp_path / "repositories" / "project", FILES)
    with GitServer(tmp_path / "repositories") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, server: GitServer) -> Path:
    """The repository that `address` leads to."""
    return tmp_path / "repositories" / "project"


@pytest.fixture
def address(server: GitServer) -> str:
    return f"{server.url}/project/.git"


@pytest.fixture
def script(script: Callable[..., Path]) -> Callable[..., Path]:
    """As elsewhere, where the owner allows plain HTTP."""
    return lambda text, **variables: script(text, **{"HOWL_CHECKOUT_SCHEMES": "https,http"} | variables)


def test_the_diff_of_all_kinds_of_changes_makes_the_same_files_elsewhere(script, project, address, kept):
    root = script(f"{CHANGE}; tar cf artifacts/all.tar --exclude=.git --exclude=artifacts .")
    changes = run("hello", repository=address)["changes"]
    assert changes["files_changed"] == 4
    assert {each["path"]: each["change"] for each in changes["files"]} == {
        "README": "modified", "deep/er/bytes.bin": "modified", "new/ä file": "added", "to go": "deleted",
    }  # fmt: skip
    assert (changes["repository"], changes["ref"]) == (address, "HEAD")
    assert changes["commit"] == git(project, "rev-parse", "HEAD")
    git(project, "apply", "--binary", data=kept["changes.diff"])
    expected = root / "expected"
    expected.mkdir()
    subprocess.run(["tar", "xf", "-", "-C", str(expected)], input=kept["all.tar"], check=True, timeout=TIMEOUT)
    differing = subprocess.run(
        ["diff", "-r", "-x", ".git", "-x", "artifacts", str(expected), str(project)],
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert differing.stdout == b""


def test_an_agent_finds_a_repository_to_work_with(script, address, kept):
    result = script("git status --short; git remote get-url origin; git log --format=%s; git stash list") and run(
        "hello", repository=address
    )
    assert result["stdout"].splitlines() == [address, "as told"]
    assert (result["changes"]["files_changed"], result["artifacts"], kept) == (0, [], {})


@pytest.mark.parametrize(
    "after",
    [
        "git add -A; git -c user.name=x -c user.email=x commit -qm done",
        "rm -rf .git",
        "rm -rf .git; git init -q; git add -A",
        "git checkout -q --orphan other; git rm -rfq --cached .",
        "echo ref: nowhere > .git/HEAD",
        "echo new/ >> .git/info/exclude; echo '*.bin binary -diff' > .git/info/attributes",
    ],
)
def test_the_changes_are_told_whatever_became_of_the_agents_repository(script, address, kept, after: str):
    script(f"{CHANGE}; {after}")
    assert run("hello", repository=address)["changes"]["files_changed"] == 4
    assert b"GIT binary patch" in kept["changes.diff"]


def test_what_a_failing_agent_changed_is_kept(script, address, kept):
    script(f"{CHANGE}; exit 1")
    with pytest.raises(AgentFailed):
        run("hello", repository=address)
    assert b"+three" in kept["changes.diff"]


def test_ignored_files_and_artifacts_are_no_changes(script, address, kept):
    script("echo build/ > .gitignore; mkdir build; echo > build/x; echo > artifacts/y; rm artifacts/brought.txt")
    assert [each["path"] for each in run("hello", repository=address)["changes"]["files"]] == [".gitignore"]
    assert set(kept) == {"changes.diff", "y"}


def test_what_a_repository_brought_into_artifacts_is_kept_only_if_it_was_changed(script, address, kept):
    script("echo >> artifacts/$(basename artifacts/*)") and run("hello", repository=address)
    assert set(kept) == {"brought.txt"}


@pytest.mark.parametrize("target", ["/etc", "..", "deep"])
def test_a_link_that_a_repository_brought_leads_nowhere(script, project, address, kept, target: str):
    commit(project, {"artifacts/brought.txt": None})
    (project / "artifacts").rmdir()
    (project / "artifacts").symlink_to(target)
    commit(project, {})
    script("true")
    assert run("hello", repository=address)["refused"] == [
        {"name": "artifacts", "why": "it is a link, and not followed"}
    ]
    assert kept == {}


def test_a_branch_a_tag_and_a_commit_can_be_asked_for(script, project, address):
    older = git(project, "rev-parse", "HEAD")
    git(project, "tag", "-a", "-m", "x", "v1.0")
    git(project, "branch", "feature/#1+x")
    newer = commit(project, {"README": b"newer\n"})
    script("true")
    for ref, expected in {"v1.0": older, "feature/#1+x": older, older: older, "refs/heads/main": newer}.items():
        assert run("hello", repository=address, ref=ref)["changes"]["commit"] == expected


@pytest.mark.parametrize("ref", ["no-such-branch", "0" * 40])
def test_a_ref_that_is_not_there_is_a_clear_error(script, address, ref: str):
    root = script("echo worked > /dev/null")
    with pytest.raises(CheckoutFailed, match=f"{ref} of {address} could not be fetched: "):
        run("hello", repository=address, ref=ref)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "ref",
    ["--upload-pack=touch x", "-x", "+main", "main:other", "a b", "a..b", "main^{}", "main~1", "@{-1}", "*", "", "a\n",
     5, "x.lock", "/main", "a//b", "a" * 256, "é"],
)  # fmt: skip
def test_what_is_no_ref_is_refused_before_anything_is_asked(script, server, address, ref: object):
    script("true")
    with pytest.raises(InvalidRequest, match="ref must be"):
        run("hello", repository=address, ref=ref)
    assert server.seen == []


@pytest.mark.parametrize(
    "repository",
    ["ext::sh -c touch% x", "ext::touch", "http::{url}", "https::{url}", "file://{project}", "{project}", "../project",
     "-x", "--upload-pack=touch", "ssh://host/x", "git@host:x", "git://127.0.0.1/x", "HTTP://127.0.0.1/x", "fd::17", "",
     "http://user:secret@127.0.0.1/x", "http://user@127.0.0.1/x", "http:///x", "http://127.0.0.1:x/", "http://[::1/", 5,
     "http://127.0.0.1/a b", "http://127.0.0.1/\n", "http://127.0.0.1/é", " http://127.0.0.1/"],
)  # fmt: skip
def test_other_addresses_are_refused_before_anything_is_asked(script, server, project, repository: object):
    script("true")
    given = repository.format(url=server.url, project=project) if isinstance(repository, str) else repository
    with pytest.raises(InvalidRequest, match="repository") as refused:
        run("hello", repository=given)
    assert "secret" not in str(refused.value)
    assert server.seen == []


def test_unless_its_owner_says_otherwise_a_worker_fetches_over_https_alone(script, address):
    script("true", HOWL_CHECKOUT_SCHEMES="")
    with pytest.raises(InvalidRequest, match=r"must begin with https:// on this worker \(its HOWL_CHECKOUT_SCHEMES\)"):
        run("hello", repository=address)


@pytest.mark.parametrize("schemes", ["ssh", "https,ext", ","])
def test_an_owner_cannot_allow_what_would_use_more_than_the_network(script, address, schemes: str):
    script("true", HOWL_CHECKOUT_SCHEMES=schemes)
    with pytest.raises(SettingsError, match="HOWL_CHECKOUT_SCHEMES"):
        run("hello", repository=address)


def test_a_redirect_to_another_kind_of_address_is_not_followed(script, server, project, address):
    server.moved_to = f"file://{project.parent}"
    script("true")
    with pytest.raises(CheckoutFailed, match="could not be fetched"):
        run("hello", repository=address)


def test_the_owner_of_a_worker_may_name_a_folder_to_work_on(script, project, address, tmp_path, kept):
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", address, str(shallow))
    for folder in (project, shallow):
        script("echo x >> README; git log --format=%s", HOWL_AGENT_REPOSITORY=str(folder))
        result = run("hello")
        assert (result["stdout"], result["changes"]["files_changed"]) == ("as told\n", 1)
        assert (folder / "README").read_bytes() == FILES["README"]
    script("true", HOWL_AGENT_REPOSITORY=str(project))
    assert run("hello", cwd=str(tmp_path))["changes"] is None


def test_a_ref_without_a_repository_is_refused(script):
    script("true")
    with pytest.raises(InvalidRequest, match="name both"):
        run("hello", ref="main")


def test_nothing_of_the_workers_own_git_counts(script, server, address, tmp_path, monkeypatch):
    trap = tmp_path / "sprung"
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    hook = home / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {trap}\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f'[url "http://127.0.0.1:9/"]\n\tinsteadOf = {server.url}/\n[core]\n\thooksPath = {home}/hooks\n'
        f"\tfsmonitor = {hook}\n[diff]\n\texternal = {hook}\n"
    )
    (home / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    for name, value in {
        "HOME": str(home), "GIT_DIR": "/nowhere", "GIT_TEMPLATE_DIR": str(home), "GIT_SSH_COMMAND": str(hook),
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": str(home / "hooks"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    script("echo x >> README")
    assert run("hello", repository=address)["changes"]["files_changed"] == 1
    assert not trap.exists()
    assert server.logins == []


def test_programs_that_a_repository_or_an_agent_names_are_not_run_for_the_diff(script, project, address, tmp_path):
    trap = tmp_path / "sprung"
    commit(project, {".gitattributes": b"* filter=trap diff=trap merge=trap\n"})
    settings = ("filter.trap.clean", "filter.trap.smudge", "diff.trap.textconv", "diff.trap.command", "core.fsmonitor")
    script("; ".join(f"git config {name} 'touch {trap}'" for name in settings) + "; echo x >> README")
    assert run("hello", repository=address)["changes"]["files_changed"] == 1
    assert not trap.exists()


def test_submodules_are_not_fetched(script, server, project, address):
    commit(project.with_name("inner"), {"x": b"x"})
    head = git(project.with_name("inner"), "rev-parse", "HEAD")
    git(project, "update-index", "--add", "--cacheinfo", f"160000,{head},inner")
    (project / ".gitmodules").write_text(f'[submodule "inner"]\n\tpath = inner\n\turl = {server.url}/inner/.git\n')
    git(project, "add", ".gitmodules")
    git(project, "commit", "--quiet", "--message", "as told")
    script("ls inner")
    assert run("hello", repository=address)["stdout"] == ""
    assert not [path for path in server.seen if "inner" in path]


def test_only_the_commit_itself_is_fetched(script, project, address):
    for number in range(3):
        commit(project, {"README": b"%d" % number})
    script("git log --format=%s; git rev-parse --is-shallow-repository")
    assert run("hello", repository=address)["stdout"] == "as told\ntrue\n"


def test_a_repository_that_is_too_large_is_refused_while_it_comes(script, project, address):
    commit(project, {"large": os.urandom(3_000_000)})
    root = script("true", HOWL_CHECKOUT_LIMIT="1000000")
    with pytest.raises(CheckoutFailed, match=r"1,000,000 bytes, HOWL_CHECKOUT_LIMIT"):
        run("hello", repository=address)
    assert list(root.iterdir()) == []


def test_a_repository_that_unfolds_to_very_many_files_is_refused_before_it_does(script, project, address):
    tree = git(project, "hash-object", "-w", "--stdin", data=b"x")
    entry = f"100644 blob {tree}"
    for _ in range(9):  # 10 to the power of 9 files in a few hundred bytes
        lines = "".join(f"{entry}\t{number}\n" for number in range(10))
        tree = git(project, "mktree", data=lines.encode())
        entry = f"040000 tree {tree}"
    git(project, "branch", "bomb", git(project, "commit-tree", "-m", "x", tree))
    root, began = script("true"), time.monotonic()
    with pytest.raises(CheckoutFailed, match="too large"):
        run("hello", repository=address, ref="bomb")
    assert time.monotonic() - began < 30
    assert list(root.iterdir()) == []


def test_files_that_are_too_large_together_are_refused_before_they_are_written(script, project, address):
    commit(project, {"zeros": bytes(5_000_000)})
    script("true", HOWL_CHECKOUT_LIMIT="1000000")
    with pytest.raises(CheckoutFailed, match="too large: its files may have 1,000,000 bytes"):
        run("hello", repository=address)


def test_a_server_that_does_not_answer_is_given_up(script, server, address, monkeypatch):
    monkeypatch.setattr(checkout, "PATIENCE", 2.0)
    server.silent.set()
    root = script("true")
    with pytest.raises(CommandTimedOut, match="'git' was ended after 2 s"):
        run("hello", repository=address)
    assert list(root.iterdir()) == []


def test_a_repository_that_wants_a_login_is_a_clear_error_at_once(script, server, address):
    server.locked.set()
    script("true")
    with pytest.raises(CheckoutFailed, match=r"could not read|Authentication failed|could not be fetched"):
        run("hello", repository=address)


def test_a_diff_that_is_too_large_is_told_and_not_kept(script, address, kept):
    script("head -c 3000000 /dev/urandom > large", HOWL_ARTIFACT_LIMIT="1000000")
    result = run("hello", repository=address)
    assert result["changes"]["files"] == [{"path": "large", "change": "added"}]
    assert result["refused"] == [
        {"name": "changes.diff", "why": "it would be larger than 1,000,000 bytes (HOWL_ARTIFACT_LIMIT)"}
    ]
    assert kept == {}


@pytest.mark.parametrize("change", ["head -c 2000000 /dev/urandom > large", "rm large", "truncate -s 1 large"])
def test_beside_what_is_too_large_for_a_diff_all_else_is_kept(script, project, address, kept, change: str):
    if "/dev/urandom" not in change:
        commit(project, {"large": os.urandom(2_000_000)})
    script(f"{CHANGE}; {change}", HOWL_ARTIFACT_LIMIT="1000000")
    result = run("hello", repository=address)
    assert result["changes"]["files_changed"] == 5
    why = "it is left out of changes.diff, which may have 1,000,000 bytes (HOWL_ARTIFACT_LIMIT)"
    assert result["refused"] == [{"name": "large", "why": why}]
    git(project, "apply", "--binary", data=kept["changes.diff"])
    assert (project / "README").read_bytes() == b"one\ntwo\nthree\n"
    assert (project / "new" / "ä file").exists()


def test_what_git_cannot_take_in_costs_the_diff_nothing_else(script, address, kept):
    script("echo three >> README; mkdir inner; git -C inner init -q; echo x > inner/x")
    result = run("hello", repository=address)
    assert b"+three" in kept["changes.diff"]
    (refused,) = result["refused"]
    assert (refused["name"], "'inner/' does not have a commit" in refused["why"]) == ("changes.diff", True)


def test_of_a_diff_as_few_files_are_left_out_as_must_be_the_largest_first(script, address, kept):
    sizes = {"b": 450_000, "c/a 'quoted' \"ä\"\\": 460_000, " d": 440_000, "umlaut-\udce4": 470_000, "e": 1_000}
    program = (
        "import os, sys; os.makedirs('c'); [open(n, 'wb').write(os.urandom(s)) for n, s in eval(sys.argv[1]).items()]"
    )
    script(f"{shlex.join([sys.executable, '-c', program, ascii(sizes)])}; echo > empty", HOWL_ARTIFACT_LIMIT="1500000")
    result = run("hello", repository=address)
    assert [each["name"] for each in result["refused"]] == ["umlaut-\ufffd", "c/a 'quoted' \"ä\"\\"]
    assert kept["changes.diff"].count(b"\ndiff --git ") == 3


def test_of_very_many_changes_the_first_are_told_and_all_are_counted(script, address, kept):
    script("seq 1000 | while read n; do echo $n > f$n; done")
    changes = run("hello", repository=address, timeout=60)["changes"]
    assert changes["files_changed"] == 1000
    assert 100 < len(changes["files"]) < 200
    assert kept["changes.diff"].count(b"new file mode") == 1000


def test_an_agent_that_deletes_everything_is_told_as_such_or_fails_clearly(script, address, kept):
    script("rm -rf ./* ../base.git")
    with pytest.raises(CheckoutFailed, match="failed in the agent's folder"):
        run("hello", repository=address)
