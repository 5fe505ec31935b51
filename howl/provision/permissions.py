"""Permissions of a credential in Redis and NATS: rules for an ACL file, subjects for a nats.conf.

Needs Redis 7 or Valkey: older versions cannot tell reading a key from writing it. Everything is in database 0.
"""

import re
from dataclasses import dataclass

from howl.broker.namespaces import DEFAULT_USER, Namespace
from howl.errors import InvalidRequest, SettingsError
from howl.queue_names import ITS_OWN, NO_QUEUES, PRIORITY_MARK, require_queue

#: A name that stands for itself alone in an ACL file, where spaces separate and these characters match others.
LITERAL = re.compile(r"[^\s*?\[\]\\\x00-\x1f\x7f]*")
USER = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: The first rules of every list: they reset all permissions, so that the list is complete.
NOTHING = ("resetkeys", "resetchannels", "clearselectors", "-@all")
#: Commands of turn.lua, since scripts run with their caller's permissions, and those of kombu and redis-py beside it.
#: No EVAL and no SCRIPT LOAD: the only scripts are the server's. No DEL, no PUBLISH, and nothing that lists keys or
#: clients. Redis serves one command at a time, however long it takes: none here takes long, and each asks and answers
#: little. So no MULTI, in which a thousand long answers are made before any is counted, no HKEYS and no MEMORY USAGE.
WORKER_COMMANDS = (
    "hello", "ping", "client|setname", "time", "evalsha",
    "getrange", "set", "llen", "lindex", "lpush", "rpush", "rpop", "brpop", "ltrim", "pexpire",
    "hget", "hset", "hdel", "hexists", "hincrby", "hlen", "hstrlen", "zadd", "xadd", "xlen", "xrange", "smembers",
    "psubscribe", "punsubscribe", "subscribe", "unsubscribe",
)  # fmt: skip


#: Kinds of messages that a worker's credential may send the server over NATS, on `<prefix>.<kind>.<credential>`.
TOLD = ("events", "leave", "upload")


@dataclass(frozen=True)
class Grant:
    """A worker credential: the Redis and NATS user's name, and the queues it may take from and push to (None: all)."""

    name: str
    queues: tuple[str, ...] | None = None


def worker_rules(prefix: str, grant: Grant) -> list[str]:
    """Return a worker's Redis ACL rules, without `on` and the password.

    Raises SettingsError for names that no rule can hold.

    A worker can be assigned tasks by its own name if that is the grant's, or begins with it and a hyphen.
    """
    _require_user(grant.name)
    _require_literal("The key prefix", prefix)
    queues = _every_queue(prefix) if grant.queues is None else _queues(prefix, grant)
    return [
        # Its own keys first: Redis tries a user's key patterns from the first to the last.
        *NOTHING, *_own(Namespace(prefix, grant.name)), *queues,
        # Revoked tasks, and the bindings of exchanges.
        f"%R~{prefix}revoked", f"%R~{prefix}_kombu.binding.*",
        # Answers to remote control: a worker can receive commands, and cannot send them.
        f"%W~{prefix}*.celery.pidbox", f"%W~{prefix}*.celery.pidbox{PRIORITY_MARK}*", f"&{prefix}/0.celery.pidbox",
        *(f"+{command}" for command in WORKER_COMMANDS),
    ]  # fmt: skip


def server_rules(prefix: str) -> list[str]:
    """Return the same for `howl server`, Flower and people's commands: all below the prefix, but no administration."""
    _require_literal("The key prefix", prefix)
    # A subscription by pattern needs a grant of exactly that pattern.
    channels = (f"{prefix}*", *(f"{prefix}/0.{name}" for name in ("celery.pidbox", "celeryev/*", "celeryev/worker.*")))
    may = ["+@all", "-@admin", "-@dangerous", "-select", "+info"]
    # It checks its workers' permissions before it moves anything for them, and finds out whose script it has stopped.
    may += ["+acl|whoami", "+acl|users", "+acl|dryrun", "+slowlog|get", "+client|list"]
    return [*NOTHING, f"~{prefix}*", *(f"&{name}" for name in channels), *may]


def worker_subjects(subject_prefix: str, name: str) -> dict[str, list[str]]:
    """Return a worker's NATS permissions: `publish` and `subscribe`, neither ever empty, which NATS takes for "all".

    Each subject is the credential's own, so that the server knows the sender, and one credential makes few of them. A
    piece of a file is sent as the reply to the server's answer: once, below `_R_`, in this credential's account.
    """
    _require_user(name)
    publish = [*(f"{subject_prefix}.{kind}.{name}" for kind in TOLD), "_R_.>"]
    return {"publish": publish, "subscribe": [inbox(subject_prefix, name)]}


def inbox(subject_prefix: str, name: str) -> str:
    """Return the subject pattern on which a credential receives answers."""
    return f"{subject_prefix}.inbox.{name}.>"


def server_subjects(subject_prefix: str) -> dict[str, list[str]]:
    """Return the same for `howl server`: its subjects, and JetStream."""
    subjects = [f"{subject_prefix}.>", "$JS.>", "$O.>", "_INBOX.>"]
    return {"publish": subjects, "subscribe": list(subjects)}


def _own(namespace: Namespace) -> list[str]:
    """Return rules for the keys that its workers hold; those left for the server may be written, not read."""
    held = [f"~{namespace.key(name)}" for name in ("claims:*", "turns:*", "deaths", "outcomes:bytes")]
    left = [f"%W~{namespace.key(name)}" for name in ("leases", "outcomes", "parked", "unknown", "dead", "unreadable")]
    return [*held, *left]


def _every_queue(prefix: str) -> list[str]:
    """Allow all names but those of HOWL's and kombu's own keys, and doorbells: Redis's rules can only allow.

    So they allow each name that differs from every such name, letter by letter from the first, or ends before it does.
    """
    forbidden = [name for name in NO_QUEUES if name != "doorbell:"] + [f"{name}\0" for name in ITS_OWN]
    beginnings = sorted(
        {name[:end] for name in forbidden for end in range(len(name))}, key=lambda name: (len(name), name)
    )
    rules = []
    for begin in beginnings:
        following = {name[len(begin)] for name in forbidden if name.startswith(begin) and name != begin}
        goes_on = "".join(sorted(following - {"\0"}))
        rules.append(f"~{prefix}{begin}[^{goes_on}]*" if goes_on else f"~{prefix}{begin}?*")
    ends = [f"~{prefix}{begin}" for begin in beginnings if begin and begin not in ITS_OWN]
    return [*rules, *ends]


def _queues(prefix: str, grant: Grant) -> list[str]:
    for name in grant.queues or ():
        _require_queue(name)
    named = [*(grant.queues or ()), f"worker.{grant.name}"]
    lists = [f"~{prefix}{name}{suffix}" for name in named for suffix in ("", f"{PRIORITY_MARK}*")]
    bells = [f"~{prefix}doorbell:{name}" for name in named]
    return [*lists, *bells, f"~{prefix}worker.{grant.name}-*", f"~{prefix}doorbell:worker.{grant.name}-*"]


def _require_queue(name: str) -> None:
    _require_literal("The queue", name)
    try:
        require_queue(name)
    except InvalidRequest as error:
        raise SettingsError(error.message) from None


def _require_literal(what: str, name: str) -> None:
    if not LITERAL.fullmatch(name):
        raise SettingsError(
            f"{what} {name!r} must have no spaces and none of * ? [ ] \\, which Redis takes for others."
        )


def _require_user(name: str) -> None:
    if not USER.fullmatch(name) or name == DEFAULT_USER:
        raise SettingsError(f"A credential cannot be named {name!r}: take letters, digits, _ and -, and not `default`.")
