"""Types of settings: how they are parsed from text, and which values are refused."""

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field
from pydantic_settings import NoDecode

from howl.durations import parse_duration
from howl.join import decode
from howl.queue_names import fault_of

#: Fewest characters of a password that a person chooses.
SHORTEST_PASSWORD = 6

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def _split_list(value: Any) -> Any:
    """Turn `a, b` into ("a", "b")."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    """Turn `10m` into 600.0."""
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]


def _each_a_queue(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if fault := fault_of(name):
            raise ValueError(f"no queue can be called so: {fault}")
    return names


Queues = Annotated[CommaSeparated, AfterValidator(_each_a_queue)]


def url_of(*schemes: str) -> Callable[[str | None], str | None]:
    """Return a check that an address, if given, is a URL of one of the schemes; it never shows the address."""

    def check(url: str | None) -> str | None:
        try:
            parts = urlsplit(url or f"{schemes[0]}://host")
            complete = parts.scheme in schemes and parts.hostname and (parts.port or True)
        except ValueError:  # a port that is not a number, an unclosed bracket
            complete = False
        if not complete:
            raise ValueError(f"not an address of the form {schemes[0]}://user:password@host:port")
        if any(name.startswith("ssl_") for name in parse_qs(parts.query)):
            raise ValueError("certificates are always checked: leave ssl_… out of it, and name a CA in HOWL_CA_FILE")
        return url

    return check


_is_redis = url_of("redis", "rediss")


def _one_redis(url: str | None) -> str | None:
    """Require a URL that kombu and redis-py both read alike: no option is known to both."""
    if ";" in (url or ""):
        raise ValueError(
            "several servers with ; between them, and HOWL keeps to one: name that one (a ; in a password is %3B)"
        )
    _is_redis(url)
    parts = urlsplit(url or "")
    if options := ", ".join(sorted(parse_qs(parts.query, keep_blank_values=True))):
        raise ValueError(f"it takes no options, such as {options}: leave out all from the ? on")
    if not (parts.path.removeprefix("/") or "0").isdecimal():
        raise ValueError("what follows the port is the number of a database, as in redis://host:6379/0")
    return url


def _one_host(host: str | None) -> str | None:
    if set(host or "") & set(";,/@ "):
        raise ValueError("not the name or address of one host")
    return host


def _api(url: str) -> str:
    """Require an address that a token may be sent to: encrypted, or on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS):
        raise ValueError("not an address of the form https://api.example.com")
    return url.rstrip("/")


def _logins(logins: tuple[str, ...]) -> tuple[str, ...]:
    """Require logins that a browser can send and that are not guessed at once; they are never shown."""
    for login in logins:
        user, _, password = login.partition(":")
        if not (user and len(password) >= SHORTEST_PASSWORD and login.isascii() and login.isprintable()):
            raise ValueError(f"not of the form user:password, of ASCII characters, {SHORTEST_PASSWORD} in the password")
    return logins


def _schemes(schemes: tuple[str, ...]) -> tuple[str, ...]:
    """Require URL schemes that git may safely use: ssh would use keys and configuration of this machine."""
    if not (schemes and set(schemes) <= {"https", "http", "file"}):
        raise ValueError("give https, and if you must http or file, with commas between them")
    return schemes


def _join_string(text: str | None) -> str | None:
    if text:
        decode(text)
    return text


Api = Annotated[str, AfterValidator(_api)]
Logins = Annotated[CommaSeparated, AfterValidator(_logins)]
Schemes = Annotated[CommaSeparated, AfterValidator(_schemes)]
RedisUrl = Annotated[str | None, AfterValidator(_one_redis)]
Host = Annotated[str | None, AfterValidator(_one_host)]
JoinString = Annotated[str | None, AfterValidator(_join_string)]


def plain(name: str) -> Any:
    """Return an alias to read a field from HOWL_<NAME> or, as docker and compose users expect, from <NAME>."""
    return AliasChoices(f"HOWL_{name}", name)
