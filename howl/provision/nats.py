"""NATS's configuration, and its users."""

import json
from typing import Any

from howl.provision import rights
from howl.provision.state import OPERATOR, SERVER, State

CONFIGURATION = """\
# Made by `howl init`, which from then on leaves this file as it is. Files are named relative to the folder that the
# server is started in.
port: 4222
http: "127.0.0.1:8222"
include users.conf
# The handshake first: a client that had to be told to encrypt could be told not to.
tls { cert_file: "server.crt", key_file: "server.key", handshake_first: true, timeout: 5 }
jetstream { max_memory_store: 64MB, max_file_store: 2GB }
max_connections: 4000
# Of one connection: a client of HOWL's has a few.
max_subscriptions: 100
max_payload: 1MB
# Somebody who does not read is sent away.
max_pending: 16MB
write_deadline: "10s"
ping_interval: "30s"
"""

#: To find the server, and to have it read its configuration again.
RELOADING = {"publish": ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.*.RELOAD"], "subscribe": ["_INBOX.>"]}


def users(state: State, subject_prefix: str) -> str:
    """One account for HOWL, with JetStream; the system's, for reloading alone."""
    grants = ((grant.name, rights.worker_subjects(subject_prefix, grant.name)) for grant in state.worker_grants)
    workers = [_user(state, name, subjects) for name, subjects in grants]
    server = _user(state, SERVER, rights.server_subjects(subject_prefix))
    accounts = {
        "HOWL": {"jetstream": "enabled", "users": [server, *workers]},
        "SYS": {"users": [_user(state, OPERATOR, RELOADING)]},
    }
    # JSON is a form that NATS reads.
    return f"# Made by `howl init`.\nsystem_account: SYS\naccounts: {json.dumps(accounts, indent=1)}\n"


def _user(state: State, name: str, permissions: dict[str, list[str]]) -> dict[str, Any]:
    return {"user": name, "password": state.passwords[name], "permissions": permissions}
