"""The scripts that run inside Redis, each in a file beside this one.

A worker's credential runs them by digest only and cannot load its own: a script can block Redis for good, and there
have been escapes from its interpreter. The server loads them repeatedly, because Redis forgets them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis


@dataclass(frozen=True)
class Script:
    """A script and the digest that Redis knows it by."""

    name: str
    text: str
    digest: str

    def run(self, client: Any, keys: list[Any], arguments: list[Any]) -> Any:
        """Run it by its digest, or by its text if Redis does not know it or has forgotten it.

        Raises redis's errors: NoScriptError where only the server may load it and has not done so yet.
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
        """Run it as `run` does, with an asynchronous client that has the server's credential."""
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
    """Load six of them into Redis; the others are loaded at first use. Raises redis's errors."""
    for script in (PUSH, TURN, RECLAIM, UNPARK, PURGE, PROGRESS):
        client.script_load(script.text)
