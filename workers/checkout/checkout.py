"""A repository fetched for one task, and the changes to its files; neither is trusted."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypedDict

from howl.errors import CheckoutFailed
from workers.checkout import oversize
from workers.checkout.repository import Source
from workers.process import process
from workers.process.output import last_lines
from workers.process.process import ProcessResult

#: The folder, below the work folder, of files to keep as artifacts, which is no part of the changes; and the name of
#: the file with the changes.
ARTIFACTS, DIFF = "artifacts", "changes.diff"
#: Most seconds that one git command may take, and most bytes of memory, not counting files it maps.
PATIENCE, MEMORY = 300.0, 2 << 30
#: Most files of a commit.
MOST_FILES = 250_000
#: Most characters of the list of changed files, of a single path, and characters counted for each besides its path.
TOLD, PATH, BESIDE = 8_000, 500, 40

#: Options of git: this machine's configuration is not used, no program but git runs, and nothing prompts.
OPTIONS = {
    "advice.addEmbeddedRepo": "false",
    "core.bigFileThreshold": "32m",  # larger ones are neither packed as differences nor held in memory for it
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.quotePath": "false",
    "credential.helper": "",
    "fetch.unpackLimit": "1",  # always one pack file, whose size is limited
    "gc.auto": "0",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
    "init.defaultBranch": "main",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
}
VARIABLES = {
    "GIT_ASKPASS": "false",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
}
CHANGES = {"A": "added", "D": "deleted", "M": "modified", "T": "type changed"}
#: The command that compares files, without any external program that somebody configured.
SINCE = ("diff", "--cached", "--no-ext-diff", "--no-textconv", "--no-color")


class ChangedFile(TypedDict):
    """A path in the repository, as git quotes it, and the kind of change."""

    path: str
    change: str


class Changes(TypedDict):
    """The changes to a checkout: `files` are the first changed files, `files_changed` counts all."""

    repository: str
    ref: str
    commit: str
    files_changed: int
    files: list[ChangedFile]


class Checkout:
    """A checkout of one commit in `work`, and beside it a hidden repository that whoever works there does not know of.

    Changes are found with the hidden one, whatever was committed, configured or deleted in the other, `work/.git`.
    """

    def __init__(self, folder: Path, work: Path, source: Source, limit: int) -> None:
        self.folder, self.work, self.source, self.limit = folder, work, source, limit
        self.base = folder / "base.git"
        self.commit = ""

    def fetch(self) -> None:
        """Fetch the commit, and put its files into `work`; raises CheckoutFailed."""
        self._git("init", "--quiet", "--template=")
        self._fetch()
        said = self._git("rev-parse", "--verify", "--end-of-options", "FETCH_HEAD^{commit}")
        self.commit = said["stdout"].strip()
        self._measure()
        self._git("reset", "--quiet", "--hard", self.commit)
        self._give_repository()

    def changes(self, diff: Path, limit: int) -> tuple[Changes, dict[str, str]]:
        """Write the changes since the commit to `diff` in git's format; return them, and what is left out with reasons.

        If the diff has more than `limit` bytes even without the largest files, it is not kept. Raises CheckoutFailed.
        """
        left_out = self._add()
        told = _Told()
        self._git(*SINCE, "--no-renames", "--name-status", self.commit, tell=told.add)
        if told.count and not self._write(diff, limit):
            write = partial(self._write, diff, limit)
            large = oversize.leave_out(self._git, self.base / "index", self.commit, write)
            why = f"it is left out of {diff.name}, which may have {limit:,} bytes (HOWL_ARTIFACT_LIMIT)"
            left_out |= dict.fromkeys(large, why)
        changes: Changes = {
            "repository": self.source.address,
            "ref": self.source.ref,
            "commit": self.commit,
            "files_changed": told.count,
            "files": told.files,
        }
        return changes, left_out

    def _add(self) -> dict[str, str]:
        """Add all files except ignored ones, as for a commit; return what could not be added, with the reason."""
        what = ("--", ":(top)", f":(top,exclude){ARTIFACTS}")
        result = self._run("add", "--all", "--ignore-errors", *what)
        if result["exit_status"] not in (0, 1):
            raise _failed("git add failed in the agent's folder", result)
        errors = [line for line in result["stderr"].splitlines() if line.startswith("error: ")]
        why = f"git could not read all that is to be in it: {'; '.join(errors)}"
        return {DIFF: why} if result["exit_status"] else {}

    def _fetch(self) -> None:
        address, ref = self.source.address, self.source.ref
        quiet = ("--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance")
        result = self._run("fetch", "--depth=1", *quiet, "--", address, ref, limits={"RLIMIT_FSIZE": self.limit})
        if result["exit_status"] != 0:
            hint = f" (a repository may have {self.limit:,} bytes, HOWL_CHECKOUT_LIMIT)" if self._is_full() else ""
            raise _failed(f"{ref} of {address} could not be fetched{hint}", result)

    def _is_full(self) -> bool:
        """Return whether a fetched pack is as large as a file may be."""
        packs = (self.base / "objects" / "pack").glob("*")
        return any(pack.stat().st_size >= self.limit for pack in packs)

    def _measure(self) -> None:
        """Count files and bytes before any is written, as few bytes can unpack to many files; raises CheckoutFailed."""
        measure = _Measure(self.limit)
        self._git("ls-tree", "-r", "-l", "--full-tree", self.commit, tell=measure.add)

    def _give_repository(self) -> None:
        """Make a repository in `work`, so that `git log`, `git diff` and committing work as expected there."""
        own = self.work / ".git"
        self._git("init", "--quiet", "--template=", own=True)
        (own / "objects" / "info").mkdir(exist_ok=True)
        (own / "objects" / "info" / "alternates").write_text(f"{self.base / 'objects'}\n")
        if (self.base / "shallow").exists():  # missing if the commit has no parents
            shutil.copy(self.base / "shallow", own / "shallow")
        (own / "info").mkdir(exist_ok=True)
        (own / "info" / "exclude").write_text(f"/{ARTIFACTS}/\n")
        self._git("remote", "add", "origin", self.source.address, own=True)
        self._git("reset", "--quiet", self.commit, own=True)

    def _write(self, diff: Path, limit: int) -> bool:
        """Write the diff; return whether it has at most `limit` bytes, and delete it if it has more."""
        how = ("--binary", "--full-index", f"--output={diff}")
        result = self._run(*SINCE, *how, self.commit, limits={"RLIMIT_FSIZE": limit + 1})
        if diff.exists() and diff.stat().st_size > limit:
            diff.unlink()
            return False
        if result["exit_status"] != 0:
            raise _failed("What the agent changed cannot be told", result)
        return True

    def _git(
        self, *arguments: str, data: str = "", tell: Callable[[bytes], None] | None = None, own: bool = False
    ) -> ProcessResult:
        result = self._run(*arguments, data=data, tell=tell, own=own)
        if result["exit_status"] != 0:
            raise _failed(f"git {arguments[0]} failed in the agent's folder", result)
        return result

    def _run(
        self,
        *arguments: str,
        data: str = "",
        tell: Callable[[bytes], None] | None = None,
        limits: dict[str, int] | None = None,
        own: bool = False,
    ) -> ProcessResult:
        """Run git on the hidden repository, or with `own` on the one in `work`."""
        options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
        where = [f"--git-dir={self.work / '.git' if own else self.base}", f"--work-tree={self.work}"]
        return process.run(
            ["git", *options, *where, *arguments],
            # No ~/.netrc and no ~/.config; and git's own list of allowed schemes, which applies to redirects too.
            env=VARIABLES | {"HOME": str(self.folder), "GIT_ALLOW_PROTOCOL": ":".join(self.source.schemes)},
            cwd=str(self.folder),
            data=data,
            timeout=PATIENCE,
            tell=tell or _untold,
            limits={"RLIMIT_DATA": MEMORY, **(limits or {})},
        )


class _Measure:
    """A sum of the files and bytes that `git ls-tree -l` lists; raises CheckoutFailed when it is too large."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes, self.files = limit, 0, 0

    def add(self, lines: bytes) -> None:
        for line in lines.splitlines():
            size = line.split(b"\t", 1)[0].split()[-1]
            self.files += 1
            self.bytes += int(size) if size.isdigit() else 0
        if self.bytes > self.limit or self.files > MOST_FILES:
            raise CheckoutFailed(
                f"The repository is too large: its files may have {self.limit:,} bytes together (HOWL_CHECKOUT_LIMIT), "
                f"and be {MOST_FILES:,}."
            )


class _Told:
    """A count of the files that `git diff --name-status` lists, which keeps the first ones."""

    def __init__(self) -> None:
        self.count, self.files, self._room = 0, list[ChangedFile](), TOLD

    def add(self, lines: bytes) -> None:
        for line in lines.splitlines():
            letter, _, path = line.decode("utf-8", "replace").partition("\t")
            self.count += 1
            self._room -= min(len(path), PATH) + BESIDE
            if self._room >= 0:
                self.files.append({"path": path[:PATH], "change": CHANGES.get(letter[:1], letter)})


def _untold(lines: bytes) -> None:
    """Drop git's output here; it is kept for errors alone."""


def _failed(what: str, result: ProcessResult) -> CheckoutFailed:
    return CheckoutFailed(f"{what}: {last_lines(result['stdout'], result['stderr'])}")
