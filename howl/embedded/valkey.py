"""The embedded Redis: Valkey, which speaks the same protocol."""

from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from howl.embedded import binaries
from howl.embedded.server import Server
from howl.files import write_private
from howl.local_stack import HOST

# A relative folder: the server starts in it, so no path needs quoting. An append-only file synced each second loses at
# most one second when the machine dies, and nothing when only the server does.
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir .
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
busy-reply-threshold 2000
"""


class Valkey(Server):
    """The Redis protocol on loopback behind a password."""

    title = "Redis"
    slug = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self.passwords['redis']}@{HOST}:{self.port}/0"

    def _command(self) -> Sequence[str | Path]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        configuration = CONFIGURATION.format(host=HOST, port=self.port, password=self.passwords["redis"])
        write_private(self.folder / "valkey.conf", configuration)
        return [binaries.valkey_server(), "valkey.conf"]

    def _is_ready(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        try:
            told = client.info()
            # While it loads its data it answers INFO and nothing else.
            return bool(told.get("process_id") == self.pid and not told.get("loading"))
        except redis.RedisError:
            return False  # not listening yet, loading its data, or another server
        finally:
            client.close()
