"""PostgreSQL's roles: the owner of HOWL's tables, and a reader. No part of HOWL runs as superuser."""

import base64
import hashlib
import hmac
from pathlib import Path

from howl.provision.state import OWNER, READER, State

#: SCRAM iterations: PostgreSQL's default (scram_iterations).
ROUNDS = 4096


def roles(state: State) -> str:
    """Return the script that creates the roles (roles.sql), with verifiers of their passwords, not the passwords."""
    script = Path(__file__).with_name("roles.sql").read_text()
    for role in (OWNER, READER):
        script = script.replace(f"@{role}@", _verifier(role, state.passwords[role]))
    return script


def _verifier(role: str, password: str) -> str:
    """Return a verifier as PostgreSQL stores it (RFC 5802 and 7677).

    The salt is as random as the password, and stays the same while the password does.
    """
    salt = hashlib.sha256(f"{role} salt {password}".encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_, stored_, server_ = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${ROUNDS}:{salt_}${stored_}:{server_}"
