"""The join string: everything that a remote worker needs to know of a server, in one secret (HOWL_JOIN)."""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

#: Beginning of every join string; the number is that of the form, and changes when an older HOWL cannot read it.
MARK, FORM = "howl-join", "1"
#: Characters of the checksum at its end, which tells a string that was cut from one that is another's.
CHECKSUM = 12

AGAIN = "run `howl init join` on the server and store what it prints, whole"


@dataclass(frozen=True)
class Join:
    """A server's addresses, its CA's certificate, and one worker credential, valid for both Redis and NATS."""

    host: str
    redis_port: int
    nats_port: int
    user: str
    password: str = field(repr=False)
    key_prefix: str
    subject_prefix: str
    #: Queues that the credential was granted; empty: all.
    queues: tuple[str, ...] = ()
    #: PEM; empty where a public CA signed the servers' certificate.
    ca: str = ""


def encode(join: Join) -> str:
    """Return the join string: letters, digits, `-`, `_` and dots."""
    document = json.dumps(asdict(join), separators=(",", ":")).encode()
    return ".".join((MARK, FORM, base64.urlsafe_b64encode(document).rstrip(b"=").decode(), _checksum(document)))


def decode(text: str) -> Join:
    """Read a join string; raises ValueError, which says what to do and never quotes the string."""
    mark, _, rest = "".join(text.split()).partition(".")
    form, _, rest = rest.partition(".")
    if mark != MARK or not form.isdecimal():
        raise ValueError(f"not a join string: {AGAIN}")
    if form != FORM:
        raise ValueError(f"made by another version of HOWL (form {form[:9]}, this one reads {FORM}): {AGAIN}")
    payload, _, checksum = rest.partition(".")
    document = _document(payload)
    if document is None or _checksum(document) != checksum:
        raise ValueError(f"a join string that was cut short or changed: {AGAIN}")
    return _joined(document)


def _document(payload: str) -> bytes | None:
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None


def _joined(document: bytes) -> Join:
    try:
        told: dict[str, Any] = json.loads(document)
        return Join(**told | {"queues": tuple(told["queues"])})
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"a join string with other contents than expected: {AGAIN}") from None


def _checksum(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()[:CHECKSUM]
