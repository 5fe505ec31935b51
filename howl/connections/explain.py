"""Readable reasons why a server cannot be used: certificates, logins, full disks and memory."""

import ssl

from redis.exceptions import AuthenticationError, BusyLoadingError, OutOfMemoryError, ResponseError

#: OpenSSL's error codes for a certificate (X509_V_ERR_*, x509_vfy.h), with what to do about each.
_VERDICTS = (
    ({9}, "its certificate is not valid yet: set the clocks of both machines right"),
    ({10}, "its certificate has expired: run `howl init` on the server, then restart its Redis and NATS"),
    ({62, 64}, "its certificate is for other names than this address: use the one given to `howl init --host`"),
    (
        {2, 7, 18, 19, 20, 21},
        "its certificate is not signed by the authority known here: store a new HOWL_JOIN (`howl init join` prints it) "
        "or the server's ca.crt (HOWL_CA_FILE)",
    ),
)
_NO_TLS = "it does not speak TLS there: check the address and port"
#: First word of Redis's error when it accepts no writes (redis.io/docs, "Redis persistence" and `maxmemory`).
_NO_ROOM = {
    "MISCONF": "the disk it writes to is full, or fails: make room there, and work goes on by itself",
    "OOM": "its memory is full (`maxmemory` in redis.conf): once some is recorded or purged, work goes on by itself",
}
_LOADING = "it still reads its data from the disk: wait until it has, and try again"
_LOGIN = "user name or password is wrong, perhaps rotated: store a new HOWL_JOIN (`howl init join` prints it)"


def reason(error: BaseException) -> str:
    """Return why a server cannot be used, and what to do where the cause is known; else the error's first line."""
    known = next((words for cause in _causes(error) if (words := _words(cause))), None)
    return known or (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def is_refused_login(error: BaseException) -> bool:
    """Return whether Redis or NATS refused user name and password; NATS reports it only in the error's text."""
    return isinstance(error, AuthenticationError) or "authorization violation" in str(error).lower()


def takes_nothing_new(error: BaseException) -> bool:
    """Return whether Redis refuses all writes, because of its own state and not because of the command."""
    return _no_room(error) is not None


def _no_room(error: BaseException) -> str | None:
    if not isinstance(error, ResponseError):
        return None
    # redis-py has a class for OOM, and in a pipeline puts the command that failed before the error.
    kind = (
        "OOM" if isinstance(error, OutOfMemoryError) else str(error).rpartition("caused error: ")[2].partition(" ")[0]
    )
    return _NO_ROOM.get(kind)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _words(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return next((words for codes, words in _VERDICTS if error.verify_code in codes), None)
    if isinstance(error, ssl.SSLError):
        return _NO_TLS if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE") else None
    if isinstance(error, BusyLoadingError):
        return _LOADING
    return _LOGIN if is_refused_login(error) else _no_room(error)
