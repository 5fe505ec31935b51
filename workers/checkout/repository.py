"""Which repository and ref an agent is to work on: addresses that git reads as nothing else, and no credentials."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from howl.config import Settings
from howl.errors import InvalidRequest

#: Visible ASCII: git, and whatever shows it, takes such an address for one thing.
PLAIN = re.compile(r"[!-~]{1,2048}")
#: What a branch, tag, commit or full name of a ref looks like; git's own rule is wider, and has room for options,
#: refspecs and revisions.
REF = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|[/.]$))[\w][\w./@#+=,-]{0,254}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """What to fetch, as git is told, and the kinds of address it may follow on the way."""

    address: str
    ref: str
    schemes: tuple[str, ...]


def wanted(repository: str | None, ref: str | None, settings: Settings) -> Source | None:
    """What a task asked for, else what the worker's owner set; None when neither did. Raises InvalidRequest."""
    if ref is not None and not (isinstance(ref, str) and REF.fullmatch(ref)):
        raise InvalidRequest("ref must be the name of a branch or tag, or a whole commit id.")
    if repository is not None:
        _check(repository, settings.checkout_schemes)
        return Source(repository, ref or "HEAD", settings.checkout_schemes)
    if settings.agent_repository is not None:
        return _owners(settings.agent_repository, ref or "HEAD")
    if ref is not None:
        raise InvalidRequest("A ref needs a repository, and this worker has none of its own: name both.")
    return None


def _check(repository: object, schemes: tuple[str, ...]) -> None:
    kinds = " or ".join(f"{scheme}://" for scheme in schemes)
    if not (isinstance(repository, str) and PLAIN.fullmatch(repository)):
        raise InvalidRequest(f"repository must be an address that begins with {kinds}.")
    scheme, separator, _ = repository.partition("://")
    # Not what urlsplit makes of it: git reads `ext::…`, `HTTPS://…` and `host:path` in ways of its own.
    if not separator or scheme not in schemes:
        raise InvalidRequest(
            f"The repository's address must begin with {kinds} on this worker (its HOWL_CHECKOUT_SCHEMES)."
        )
    if fault := _fault(repository):
        raise InvalidRequest(f"The repository's address {fault}.")


def _fault(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # no number for a port, half a bracket
        return "is none"
    if parts.scheme == "file":
        return None if parts.path.startswith("/") and not parts.netloc else "names no folder"
    if "@" in parts.netloc:
        return "holds a login: leave it out, for tasks are recorded"
    return None if host else "names no host"


def _owners(repository: str, ref: str) -> Source:
    """The owner of the worker may name a folder."""
    if "://" in repository:
        return Source(repository, ref, (repository.partition("://")[0],))
    return Source(Path(repository).expanduser().resolve().as_uri(), ref, ("file",))
