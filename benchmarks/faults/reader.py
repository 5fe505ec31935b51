"""A process that copies the entries of the outcome stream to a file, before the recorder deletes them.

It is a process of its own, with a higher priority where that is allowed: it must read while the recorder writes to
PostgreSQL.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import redis

from howl.broker.namespaces import namespace_of
from howl.config import load_settings
from howl.connections.redis import redis_client

GROUP = "witness"


def main(path: Path) -> None:
    """Write a line per entry, with its id and its outcome, until killed."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    settings = load_settings()
    client: Any = redis_client(settings)
    key = namespace_of(settings).key("outcomes")
    client.xgroup_create(key, GROUP, id="0", mkstream=True)
    print("reading", flush=True)
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                answer = client.xreadgroup(GROUP, GROUP, {key: ">"}, count=10_000, block=5000, noack=True)
            except redis.RedisError:
                time.sleep(0.005)  # Redis is down, as the scenario intends
                continue
            for _, entries in answer or ():
                file.write(
                    b"".join(b"%b %b\n" % (entry_id, fields.get(b"outcome", b"")) for entry_id, fields in entries)
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
