"""Namespaces: each Redis user's workers keep what they hold, and leave what they say, under keys of their own.

What one credential may write, it may also spoil; so nothing is shared that workers write, but queues. The server reads
every namespace with suspicion: what it moves for a user goes only where that user could have put it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.utils import str_if_bytes

from howl.config import Settings

#: Redis's own user, who may do everything; its keys have no mark.
DEFAULT_USER = "default"


@dataclass(frozen=True)
class Namespace:
    """The keys of one user's workers, below the prefix of all keys."""

    prefix: str
    user: str = DEFAULT_USER

    @property
    def root(self) -> str:
        """What its keys begin with: `howl:`, or `howl:_by:worker:`."""
        # No queue that may be granted begins with an underscore.
        return self.prefix if self.user == DEFAULT_USER else f"{self.prefix}_by:{quote(self.user, safe='')}:"

    def key(self, name: str) -> str:
        """A key of this namespace: `key("leases")` is `howl:_by:worker:leases`."""
        return f"{self.root}{name}"

    def named(self, owner: str) -> str:
        """An owner, as people are shown it."""
        return owner if self.user == DEFAULT_USER else f"{self.user}/{owner}"


def user_of(settings: Settings) -> str:
    """The Redis user that these settings log in as."""
    return unquote(urlsplit(settings.redis()).username or "") or DEFAULT_USER


def namespace_of(settings: Settings) -> Namespace:
    """Where workers with these settings keep their keys."""
    return Namespace(settings.key_prefix, user_of(settings))


def all_namespaces(client: Any, settings: Settings) -> list[Namespace]:
    """Every user's, one's own first; raises redis's errors."""
    return namespaces_of(settings, users_of(client))


def users_of(client: Any) -> list[str]:
    """Redis's users; none where it does not say who they are: a rented one has one user for everything."""
    try:
        return [str_if_bytes(name) for name in client.acl_users()]
    except redis.exceptions.NoPermissionError:
        return []


def namespaces_of(settings: Settings, users: Iterable[str]) -> list[Namespace]:
    """The namespaces of these users, one's own and the default user's first."""
    names = dict.fromkeys((DEFAULT_USER, user_of(settings), *sorted(users)))
    return [Namespace(settings.key_prefix, name) for name in names]


def may_push(client: Any, user: str, key: str | bytes) -> bool:
    """Whether the user could put a message on this list himself, as nobody can who is gone; raises redis's errors."""
    try:
        return bool(client.execute_command("ACL DRYRUN", user, "LPUSH", key, "") == b"OK")
    except redis.exceptions.ResponseError as error:
        if "not found" in str(error):
            return False
        raise
