"""Creation of a PostgreSQL data folder, and of an installation that PostgreSQL's account can reach."""

import shutil
import signal
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path

from howl.embedded import binaries
from howl.embedded.account import Account, closed_folder
from howl.embedded.process import Child, take_over
from howl.errors import EmbeddedServerError

SUPERUSER = "postgres"
INITDB_PATIENCE = 120.0  # seconds

# The builtin provider sorts the same on every machine, whatever its locales.
INITDB_OPTIONS = (
    f"--username={SUPERUSER}",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)


def reachable_installation(home: Path, account: Account | None) -> Path:
    """Return the wheel's PostgreSQL, or a copy below `home` if `account` may not enter the wheel's folder."""
    installation = binaries.postgres_installation()
    if account is None or closed_folder(installation / "bin") is None:
        return installation
    return _copy_of(installation, home)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted run left beside and in the data folder, once all of its processes have ended."""
    with take_over(folder.with_suffix(".alive")):
        for leftover in folder.parent.glob(f"{folder.name}-new-*"):
            shutil.rmtree(leftover)
        if not _someone_else_runs(folder):
            # PostgreSQL would take any process that now has the dead one's id for a server on this folder.
            (folder / "postmaster.pid").unlink(missing_ok=True)


def create_data_folder(folder: Path, installation: Path, password: str, account: Account | None) -> None:
    """Create `folder` in one step: an interrupted attempt leaves only a temporary folder for `remove_leftovers`."""
    workshop = Path(tempfile.mkdtemp(prefix=f"{folder.name}-new-", dir=folder.parent))
    try:
        _hand_over(workshop, password, account)
        _initdb(workshop, folder, installation, account)
        (workshop / "data").rename(folder)
    finally:
        shutil.rmtree(workshop)


def _hand_over(workshop: Path, password: str, account: Account | None) -> None:
    """Put the password in first: afterwards the folder is the account's, and root should not write there."""
    file = workshop / "password"
    file.touch(mode=0o600)
    file.write_text(password)
    if account:
        account.own(file)
        account.own(workshop)


def _initdb(workshop: Path, folder: Path, installation: Path, account: Account | None) -> None:
    child = Child(
        [
            installation / "bin" / "initdb",
            f"--pgdata={workshop / 'data'}",
            f"--pwfile={workshop / 'password'}",
            *INITDB_OPTIONS,
        ],
        cwd=workshop,
        log=folder.with_suffix(".log"),
        alive=folder.with_suffix(".alive"),
        account=account,
    )
    try:
        status = child.wait(INITDB_PATIENCE)
    finally:
        child.end(signal.SIGTERM)
    if status != 0:
        raise EmbeddedServerError(f"PostgreSQL's initdb failed (exit status {status}):\n{child.log_tail()}")


def _someone_else_runs(folder: Path) -> bool:
    """Return whether a PostgreSQL that is not ours may run here: ours cannot, because we hold the lock they hold."""
    try:
        pid = (folder / "postmaster.pid").read_text().partition("\n")[0]
        return Path("/proc", str(int(pid)), "comm").read_text().strip() == "postgres"
    except (OSError, ValueError):
        return False


def _copy_of(installation: Path, home: Path) -> Path:
    """Return a copy with its libraries beside it, as in the wheel; make it once per wheel version, in one step."""
    package = installation.parent
    copy = home / f"postgres-program-{version(binaries.POSTGRES_PACKAGE)}"
    if not copy.exists():
        for outdated in home.glob("postgres-program-*"):
            shutil.rmtree(outdated)
        with tempfile.TemporaryDirectory(prefix="postgres-new-", dir=home) as workshop:
            half_made = Path(workshop) / copy.name
            for part in (package, *package.parent.glob(f"{package.name}.libs")):
                shutil.copytree(part, half_made / part.name, symlinks=True, ignore=_unused)
            _open_to_all(half_made)
            half_made.rename(copy)
    return copy / package.name / installation.name


def _unused(folder: str, names: list[str]) -> set[str]:
    """Ignore the wheel's other PostgreSQL, its Python code, headers and static libraries."""
    installations = {name for name in names if name.startswith("pginstall")} - {binaries.POSTGRES_VERSION_FOLDER}
    return installations | set(shutil.ignore_patterns("*.py", "__pycache__", "include", "*.a")(folder, names))


def _open_to_all(folder: Path) -> None:
    """Make a copy readable for all: a wheel installed under a strict umask is copied with its modes."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
