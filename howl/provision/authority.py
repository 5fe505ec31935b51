"""The server's own certificate authority, and the certificate it signs for Redis and NATS.

Uses `cryptography` rather than the openssl program: keys stay in this process, no program's output is parsed, and every
installation that can run `howl server` has it already.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Lifetimes of certificates: the authority's lasts as long as a server may, the server's until `howl init` renews it.
AUTHORITY_LIFE, SERVER_LIFE = timedelta(days=3650), timedelta(days=825)
#: A server certificate that expires within this time is renewed.
RENEWAL = timedelta(days=120)
#: How much earlier a certificate's validity begins: other machines' clocks may be behind.
CLOCKS = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


def make_authority(host: str) -> Pair:
    """Make an authority that may sign servers' certificates, but no further authorities'."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"HOWL at {host}"[:64])])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder, key, key)


def issue(authority: Pair, names: Iterable[str], life: timedelta = SERVER_LIFE) -> Pair:
    """Issue a server certificate for DNS names and IP addresses, signed by the authority."""
    signer = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not one that make_authority made")
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    key, stated = ec.generate_private_key(ec.SECP256R1()), [_general_name(name) for name in names]
    builder = (
        # Names are in the extension alone: clients no longer look for them elsewhere (RFC 9525).
        _builder(x509.Name([]), issuer.subject, key.public_key(), life)
        .add_extension(x509.SubjectAlternativeName(stated), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _pair(builder, key, signer)


def is_good_for(certificate: str, names: Iterable[str], authority: Pair) -> bool:
    """Return whether the authority signed it, for exactly these names, and it lasts longer than `RENEWAL`."""
    read, issuer = (x509.load_pem_x509_certificate(pem.encode()) for pem in (certificate, authority.certificate))
    try:
        read.verify_directly_issued_by(issuer)
        stated = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    lasts = read.not_valid_after_utc - datetime.now(UTC) > RENEWAL
    return lasts and set(stated) == {_general_name(name) for name in names}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + life) - CLOCKS)
        .not_valid_after(now + life)
    )


def _pair(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Pair:
    certificate = builder.sign(signer, hashes.SHA256())
    written = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), written.decode())


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
