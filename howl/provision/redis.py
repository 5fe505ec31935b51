"""Redis's configuration, and its file of users."""

import hashlib
from collections.abc import Iterable

from howl.provision import permissions
from howl.provision.state import HEALTH, OPERATOR, SERVER, State

#: The folder's path inside the container.
FOLDER = "/etc/howl"

CONFIGURATION = f"""\
# Made by `howl init`, which from then on leaves this file as it is. Data go to the folder the server is started in.
port 0
tls-port 6379
tls-cert-file {FOLDER}/server.crt
tls-key-file {FOLDER}/server.key
tls-auth-clients no
tls-protocols "TLSv1.2 TLSv1.3"
aclfile {FOLDER}/users.acl
appendonly yes
appendfsync everysec
save ""
maxmemory 640mb
maxmemory-policy noeviction
# Idle and half-open connections cost a little memory each, and nobody may have more of them than this.
maxclients 4000
tcp-keepalive 60
# Who neither says nor waits for anything for so many seconds is sent away; HOWL's clients come back by themselves.
timeout 300
# Somebody who does not read what was asked for is sent away, not remembered; so is whoever holds most if all clients
# together hold too much, which would otherwise count against maxmemory.
client-output-buffer-limit normal 64mb 32mb 30
client-output-buffer-limit pubsub 32mb 8mb 60
client-query-buffer-limit 64mb
# No single value may pass the limits above when it is read.
proto-max-bulk-len 32mb
maxmemory-clients 128mb
# Nobody is served while a script runs: after so many milliseconds clients are told, and `howl server` stops it. Fewer
# would refuse honest workers while the server reads an outcome of 200,000 fields, which takes half a second. What takes
# long to free is freed beside the work.
busy-reply-threshold 2000
lazyfree-lazy-expire yes
lazyfree-lazy-server-del yes
lazyfree-lazy-user-del yes
"""


def users(state: State, prefix: str) -> str:
    """Return the ACL file: users with hashes of passwords, and the default user, which is off and without a password.

    The default user has all permissions all the same. Redis loads its append-only file as that user, and before
    redis/redis#14545 dropped, for good, every transaction and script with a command that it may not run.
    """
    lines = [
        "user default off resetpass ~* &* +@all",
        _user(state, HEALTH, ["+ping"]),
        _user(state, OPERATOR, ["+ping", "+acl|load"]),
        _user(state, SERVER, permissions.server_rules(prefix)),
        *(_user(state, grant.name, permissions.worker_rules(prefix, grant)) for grant in state.worker_grants),
    ]
    return "".join(f"{line}\n" for line in lines)


def _user(state: State, name: str, rules: Iterable[str]) -> str:
    password = hashlib.sha256(state.passwords[name].encode()).hexdigest()
    return " ".join(["user", name, "on", f"#{password}", "resetkeys", "resetchannels", "-@all", *rules])
