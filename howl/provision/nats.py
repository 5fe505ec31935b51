"""NATS's configuration, and its file of users."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from howl.provision import permissions as rights
from howl.provision.state import OPERATOR, SERVER, State
from howl.server_requests import PIECE_TIME

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

#: Permissions to find the server, and to have it reload its configuration.
RELOADING = {"publish": ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.*.RELOAD"], "subscribe": ["_INBOX.>"]}


def users(state: State, subject_prefix: str) -> str:
    """Return the content of users.conf."""
    accounts = told(subject_prefix, SERVER, [grant.name for grant in state.worker_grants], state.passwords)
    system = {"users": [_user(OPERATOR, state.passwords, RELOADING)]}
    # NATS reads JSON.
    document = json.dumps(accounts | {"SYS": system}, indent=1)
    return f"# Made by `howl init`.\nsystem_account: SYS\naccounts: {document}\n"


def told(prefix: str, server: str, workers: Sequence[str], passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return NATS's accounts: HOWL's own, with JetStream, and one for each of the `workers`' credentials.

    NATS sends a reply to whatever subject the sender names, with its own permissions: JetStream's receipts would reach
    other people's inboxes, streams and the API. Accounts share only the subjects that one exports and another imports,
    so the replies that a worker causes reach its own credential alone.
    """
    exports = [{"service": f"{prefix}.{kind}.*"} for kind in rights.TOLD]
    imports = [{"service": {"account": _account(name), "subject": rights.inbox(prefix, name)}} for name in workers]
    own = _user(server, passwords, rights.server_subjects(prefix))
    accounts: dict[str, Any] = {
        "HOWL": {"jetstream": "enabled", "users": [own], "exports": exports, "imports": imports}
    }
    return accounts | {_account(name): _worker(prefix, name, passwords) for name in workers}


def _worker(prefix: str, name: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    return {
        "users": [_user(name, passwords, rights.worker_subjects(prefix, name))],
        "exports": [
            {"service": rights.inbox(prefix, name), "accounts": ["HOWL"], "response_threshold": f"{PIECE_TIME}s"}
        ],
        "imports": [{"service": {"account": "HOWL", "subject": f"{prefix}.{kind}.{name}"}} for kind in rights.TOLD],
    }


def _account(name: str) -> str:
    return f"worker-{name}"


def _user(name: str, passwords: Mapping[str, str], permissions: dict[str, list[str]]) -> dict[str, Any]:
    return {"user": name, "password": passwords[name], "permissions": permissions}
