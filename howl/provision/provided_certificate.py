"""A certificate from elsewhere, such as Let's Encrypt's, checked as a client would before any server uses it."""

import ssl
import tempfile
from pathlib import Path

from howl.connections import tls
from howl.errors import ProvisionFailed
from howl.provision.authority import Pair

#: Most rounds of a handshake between two ends in one process: more are never needed.
ROUNDS = 8


def read_given(certificate: Path, key: Path, ca: Path | None, host: str) -> tuple[Pair, str | None]:
    """Return the pair, and the authority's certificate (None: a public one).

    Raises ProvisionFailed, with the reason, for a certificate that clients would refuse.
    """
    try:
        pair = Pair(certificate.read_text(), key.read_text())
        authority = ca.read_text() if ca else None
    except (OSError, UnicodeDecodeError) as error:
        raise ProvisionFailed(f"The given certificate cannot be read: {error}.") from None
    try:
        _shake_hands(_server(pair), _client(authority), host)
    except ssl.SSLError as error:
        raise ProvisionFailed(
            f"Clients would refuse the given certificate for {host}: {_why(error)}. "
            "Give the full chain (fullchain.pem), its key, and --ca where no public authority signed it."
        ) from None
    return pair, authority


def _server(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module reads key pairs only from files.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{pair.key}\n{pair.certificate}")
        file.flush()
        context.load_cert_chain(file.name, password=_refuse_encrypted)
    return context


def _refuse_encrypted() -> str:
    raise ProvisionFailed("The given key is encrypted, and servers that start by themselves could not read it.")


def _client(authority: str | None) -> ssl.SSLContext:
    return tls.context(authority)


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(ROUNDS):
        for end in ends.copy():
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    if ends:
        raise ssl.SSLError("the handshake does not come to its end")


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message).rstrip(".")
    return str(error.reason or error).replace("_", " ").lower()
