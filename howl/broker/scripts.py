"""The scripts that run inside Redis, each a file beside this one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis


@dataclass(frozen=True)
class Script:
    """A script and the digest by which Redis knows it."""

    text: str
    digest: str

    def run(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """Run it by its digest; by its text if Redis has not seen it, or has forgotten it."""
        try:
            return client.evalsha(self.digest, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, len(keys), *keys, *arguments)


def _load(name: str) -> Script:
    text = Path(__file__).with_name(name).read_text()
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUSH = _load("push.lua")
TURN = _load("turn.lua")
KEEP = _load("keep.lua")
FEED = _load("feed.lua")
PURGE = _load("purge.lua")
