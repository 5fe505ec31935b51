"""Namespaces: each Redis user's workers keep their claims and their outcomes under keys of their own.

A credential can corrupt whatever it may write, so workers share no keys that they write except queues. The server
trusts no namespace: what it moves for a user goes only where that user could have put it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.utils import str_if_bytes

from howl.config import Settings

#: Redis's own user, which may do everything; its keys have no user name in them.
DEFAULT_USER = "default"


@dataclass(frozen=True)
class Namespace:
    """The keys of one user's workers, below the prefix of all keys."""

    prefix: str
    user: str = DEFAULT_USER

    @property
    def root(self) -> str:
        """The prefix of its keys: `howl:`, or `howl:_by:worker:`."""
        # No queue that may be granted begins with an underscore.
        return self.prefix if self.user == DEFAULT_USER else f"{self.prefix}_by:{quote(self.user, safe='')}:"

    def key(self, name: str) -> str:
        """Return a key of this namespace: `key("leases")` is `howl:_by:worker:leases`."""
        return f"{self.root}{name}"

    def named(self, owner: str) -> str:
        """Return an owner's name as people are shown it."""
        return owner if self.user == DEFAULT_USER else f"{self.user}/{owner}"


def user_of(settings: Settings) -> str:
    """Return the Redis user that these settings log in as."""
    return unquote(urlsplit(settings.redis()).username or "") or DEFAULT_USER


def namespace_of(settings: Settings) -> Namespace:
    """Return the namespace of workers with these settings."""
    return Namespace(settings.key_prefix, user_of(settings))


def all_namespaces(client: Any, settings: Settings) -> list[Namespace]:
    """Return the namespaces of all users, the default user's and one's own first; raises redis's errors."""
    return namespaces_of(settings, users_of(client))


def users_of(client: Any) -> list[str]:
    """Return Redis's users, or none where listing them is not allowed: a hosted Redis has one user for everything."""
    try:
        return [str_if_bytes(name) for name in client.acl_users()]
    except redis.exceptions.NoPermissionError:
        return []


def namespaces_of(settings: Settings, users: Iterable[str]) -> list[Namespace]:
    """Return the namespaces of these users, the default user's and one's own first."""
    names = dict.fromkeys((DEFAULT_USER, user_of(settings), *sorted(users)))
    return [Namespace(settings.key_prefix, name) for name in names]


def may_push(client: Any, user: str, key: str | bytes) -> bool:
    """Return whether the user may push to this list; a deleted user may not. Raises redis's errors."""
    try:
        return bool(client.execute_command("ACL DRYRUN", user, "LPUSH", key, "") == b"OK")
    except redis.exceptions.ResponseError as error:
        if "not found" in str(error):
            return False
        raise
