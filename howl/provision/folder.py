"""The folder of a real server: made by `howl init`, mounted by docker-compose.yml.

Only its owner may enter it. The folders in it that containers mount are readable once inside, because the servers there
run as users of their own. Folders are mounted, not files, so that a file replaced here is replaced there.
"""

from dataclasses import dataclass, field
from pathlib import Path

from howl.errors import ProvisionFailed
from howl.files import write_private
from howl.provision import environment, nats, postgres, redis
from howl.provision.authority import Pair, is_good_for, issue, make_authority
from howl.provision.state import HEALTH, SUPERUSER, State

NAME = "howl-server"
#: Folders mounted by containers; the authority's key and server.json are mounted by none.
MOUNTED = ("redis", "nats", "clients", "postgres", "postgres/init")
PRIVATE, READABLE = 0o600, 0o644


@dataclass(frozen=True)
class Folder:
    """The place of a server's files: `.env` and howl-server/ in `out`, beside docker-compose.yml."""

    out: Path
    #: What was done to each file: `made`, `changed` or `kept`.
    report: dict[Path, str] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> Path:
        return self.out.absolute() / NAME

    @property
    def env(self) -> Path:
        return self.out.absolute() / ".env"

    @property
    def ca(self) -> Path:
        """The authority's certificate, by which clients verify the servers'."""
        return self.path / "clients" / "ca.crt"

    @property
    def prefixes(self) -> tuple[str, str]:
        """Prefixes of Redis's keys and NATS's subjects."""
        told = environment.read(self.env)
        return told.get("HOWL_KEY_PREFIX") or "howl:", told.get("HOWL_SUBJECT_PREFIX") or "howl"

    def state(self) -> State | None:
        """Read the server's state; None where nothing was made yet."""
        return State.read(self.path / "server.json")

    def existing(self) -> State:
        """Read the server's state; raises ProvisionFailed where nothing was made yet."""
        state = self.state()
        if state is None:
            raise ProvisionFailed(f"Nothing is in {self.path}: run `howl init --host NAME` first, or give --out.")
        return state

    def put(self, name: str | Path, text: str, mode: int) -> None:
        """Write a file in one step, unless it has that content already."""
        path = self.path / name
        before = path.read_text() if path.exists() else None
        if before != text:
            write_private(path, text)
        path.chmod(mode)
        self.report[path] = "made" if before is None else "kept" if before == text else "changed"

    def put_once(self, name: str, text: str, mode: int) -> None:
        """Write a file unless it exists: people may have edited it since."""
        path = self.path / name
        self.put(name, path.read_text() if path.exists() else text, mode)


def build(folder: Folder, state: State, given: tuple[Pair, str | None] | None = None) -> None:
    """Make what is missing, and update what follows from the state; secrets stay.

    Raises ProvisionFailed or SettingsError; run again, it continues where it stopped.
    """
    redis.users(state, folder.prefixes[0])  # an invalid grant is refused before anything is written
    try:
        before = folder.state()
        if before is None:
            _refuse_foreign_secrets(folder, state)
        _make_folders(folder)
        folder.put("server.json", state.document(), PRIVATE)
        _put_certificates(folder, state, given)
        _put_servers(folder, state)
        _put_environment(folder, state, before)
    except OSError as error:
        raise ProvisionFailed(f"{folder.path} cannot be written ({error}): choose another --out.") from None


def _refuse_foreign_secrets(folder: Folder, state: State) -> None:
    """Refuse an earlier `.env` with other secrets: it belongs to a running server, whose passwords must stay."""
    told, wanted = environment.read(folder.env), environment.variables(state, folder.ca)
    foreign = [name for name in environment.SECRETS if told.get(name) and told[name] != wanted[name]]
    if foreign:
        raise ProvisionFailed(
            f"{folder.env} sets {', '.join(foreign)} already: remove these lines, or move the file away, and try again."
        )


def _make_folders(folder: Folder) -> None:
    for name, mode in (("", 0o700), ("authority", 0o700), *((name, 0o755) for name in MOUNTED)):
        path = folder.path / name
        path.mkdir(parents=not name, exist_ok=True)
        path.chmod(mode)


def _put_certificates(folder: Folder, state: State, given: tuple[Pair, str | None] | None) -> None:
    if given is not None:
        pair, authority = given
        if authority is not None:
            folder.put(folder.ca, authority, READABLE)
    elif state.given:
        pair = _pair(folder.path / "redis" / "server")
    else:
        pair = _signed_by_ours(folder, state)
    for server in ("redis", "nats"):
        folder.put(f"{server}/server.crt", pair.certificate, READABLE)
        folder.put(f"{server}/server.key", pair.key, READABLE)


def _signed_by_ours(folder: Folder, state: State) -> Pair:
    stem, served = folder.path / "authority" / "ca", folder.path / "redis" / "server"
    authority = _pair(stem) if _is_there(stem) else make_authority(state.host)
    folder.put("authority/ca.key", authority.key, PRIVATE)
    folder.put("authority/ca.crt", authority.certificate, PRIVATE)
    folder.put(folder.ca, authority.certificate, READABLE)
    if _is_there(served) and is_good_for(_pair(served).certificate, state.names, authority):
        return _pair(served)
    return issue(authority, state.names)


def _put_servers(folder: Folder, state: State) -> None:
    key_prefix, subject_prefix = folder.prefixes
    folder.put_once("redis/redis.conf", redis.CONFIGURATION, READABLE)
    folder.put("redis/users.acl", redis.users(state, key_prefix), READABLE)
    folder.put("redis/health-password", state.passwords[HEALTH], READABLE)
    folder.put_once("nats/nats.conf", nats.CONFIGURATION, READABLE)
    folder.put("nats/users.conf", nats.users(state, subject_prefix), READABLE)
    folder.put("postgres/superuser-password", f"{state.passwords[SUPERUSER]}\n", READABLE)
    folder.put("postgres/init/roles.sql", postgres.roles(state), READABLE)


def _put_environment(folder: Folder, state: State, before: State | None) -> None:
    text = folder.env.read_text() if folder.env.exists() else ""
    known = environment.variables(before, folder.ca) if before else {}
    folder.put(folder.env, environment.merged(text, known, environment.variables(state, folder.ca)), PRIVATE)


def _is_there(stem: Path) -> bool:
    return all(stem.with_suffix(end).exists() for end in (".crt", ".key"))


def _pair(stem: Path) -> Pair:
    return Pair(stem.with_suffix(".crt").read_text(), stem.with_suffix(".key").read_text())
