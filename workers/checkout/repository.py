"""Choice of the repository and ref for an agent: addresses that git cannot misread, without credentials."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from howl.config import Settings
from howl.errors import InvalidRequest

#: Visible ASCII: git, and whatever displays an address, reads it the same way.
PLAIN = re.compile(r"[!-~]{1,2048}")
#: The form of a branch, tag, commit or full name of a ref; git's own rule is wider, and admits options, refspecs and
#: revisions.
REF = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|[/.]$))[\w][\w./@#+=,-]{0,254}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A repository and ref as git is told to fetch them, and the schemes it may follow on redirects."""

    address: str
    ref: str
    schemes: tuple[str, ...]


def wanted(repository: str | None, ref: str | None, settings: Settings) -> Source | None:
    """Return the task's repository, else that of the worker's owner; None if neither is set. Raises InvalidRequest."""
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
    # Not urlsplit's scheme: git reads `ext::…`, `HTTPS://…` and `host:path` in ways of its own.
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
    except ValueError:  # a port that is not a number, an unclosed bracket
        return "is none"
    if parts.scheme == "file":
        return None if parts.path.startswith("/") and not parts.netloc else "names no folder"
    if "@" in parts.netloc:
        return "holds a login: leave it out, for tasks are recorded"
    return None if host else "names no host"


def _owners(repository: str, ref: str) -> Source:
    """Return the source of the worker's owner, who may also name a folder."""
    if "://" in repository:
        return Source(repository, ref, (repository.partition("://")[0],))
    return Source(Path(repository).expanduser().resolve().as_uri(), ref, ("file",))
