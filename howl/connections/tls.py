"""TLS options for every client that HOWL starts."""

import logging
import ssl
from typing import Any
from urllib.parse import urlsplit

from howl.config import Settings


def redis_options(settings: Settings) -> dict[str, Any]:
    """Return options for redis-py's connections, and so kombu's (`broker_use_ssl`); none for an address without TLS.

    They check certificate and host name, which kombu by itself does not do for a bare `rediss://`.
    """
    if urlsplit(settings.redis_url or "").scheme != "rediss":
        return {}
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_data": settings.ca,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def nats_options(settings: Settings) -> dict[str, Any]:
    """Return options for `nats.connect` besides the address; none for an address without TLS.

    The handshake comes before the server's first message: otherwise, anyone in between could tell the client that no
    TLS is wanted, and would be sent the password.
    """
    if urlsplit(settings.nats_url or "").scheme != "tls":
        return {}
    logging.getLogger("asyncio").addFilter(_is_news)
    return {"tls": context(settings.ca), "tls_handshake_first": True}


def context(ca: str | None) -> ssl.SSLContext:
    """Return a client context that checks certificate and host name, against `ca` (PEM) or the system's CAs."""
    made = ssl.create_default_context(cadata=ca)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for asyncio's harmless warning of each encrypted connection that nats-py closes."""
    return "eof_received() has no effect when using ssl" not in record.getMessage()
