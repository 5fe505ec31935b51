"""The scripts that run inside Redis, each a file beside this one.

A worker's credential runs them by their digests alone and cannot bring its own: a script can hold up Redis for good,
and its interpreter has let people out of it before. The server loads them, again and again, for Redis forgets.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis


@dataclass(frozen=True)
class Script:
    """A script and the digest by which Redis knows it."""

    name: str
    text: str
    digest: str

    def run(self, client: Any, keys: list[Any], arguments: list[Any]) -> Any:
        """Run it by its digest; by its text if Redis has not seen it, or has forgotten it.

        Raises redis's errors: NoScriptError where only the server may load it, and has not yet.
        """
        try:
            return client.evalsha(self.digest, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError as unknown:
            try:
                return client.eval(self.text, len(keys), *keys, *arguments)
            except redis.exceptions.NoPermissionError:
                raise redis.exceptions.NoScriptError(
                    f"Redis does not know the script {self.name}: `howl server`, of this version, loads it"
                ) from unknown

    async def run_for(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """The same with an asynchronous client, which has the server's credential."""
        try:
            return await client.evalsha(self.digest, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return await client.eval(self.text, len(keys), *keys, *arguments)


def _load(name: str) -> Script:
    text = Path(__file__).with_name(name).read_text()
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUSH = _load("push.lua")
TURN = _load("turn.lua")
RECLAIM = _load("reclaim.lua")
UNPARK = _load("unpark.lua")
PURGE = _load("purge.lua")
PROGRESS = _load("progress.lua")
COLLECT = _load("collect.lua")
CONFIRM = _load("confirm.lua")
READ = _load("read.lua")
LIMIT = _load("limit.lua")
OFFER = _load("offer.lua")


def load_all(client: Any) -> None:
    """Make Redis know them all; raises redis's errors."""
    for script in (PUSH, TURN, RECLAIM, UNPARK, PURGE, PROGRESS):
        client.script_load(script.text)
