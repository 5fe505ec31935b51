"""Reloading the users of running servers: nothing stops, and clients whose credential changed are disconnected."""

import asyncio
import json
import random
import time
from contextlib import suppress
from typing import Any

import redis

from howl.config import Settings, load_settings
from howl.connections.explain import is_refused_login, reason
from howl.connections.nats import TROUBLE, Connection
from howl.connections.redis import redis_client
from howl.provision import environment
from howl.provision.folder import Folder
from howl.provision.state import OPERATOR, State

#: Seconds to wait for each server to answer.
PATIENCE = 5
DONE = "has the new users"
#: Name of this client in NATS.
NAME = "howl init"
#: Prefix of the subjects on which the user `operator` receives answers.
INBOX = "_INBOX"


def tell(folder: Folder, before: State, now: State) -> list[str]:
    """Have Redis and NATS reload their users; return the results, a sentence each.

    Logs in as `operator` with its password from `before`, which the servers still know.
    """
    old, new = _operator(folder, before), _operator(folder, now)
    return [f"Redis: {_tell_redis(old)}.", f"NATS: {asyncio.run(_tell_nats(old, new))}."]


def _operator(folder: Folder, state: State) -> Settings:
    """Return settings to reach the servers from this machine, whatever the environment says."""
    told = environment.read(folder.env)
    login = {"user": OPERATOR, "password": state.passwords[OPERATOR]}
    named = {f"{server}_{name}": value for server in ("redis", "nats") for name, value in login.items()}
    places: dict[str, Any] = {
        name.lower(): told[name] for name in ("REDIS_HOST", "REDIS_PORT", "NATS_HOST", "NATS_PORT") if told.get(name)
    }
    unused = dict.fromkeys(("redis_url", "nats_url", "database_url", "join"))
    return load_settings(**unused, **places, **named, tls=True, ca_file=None if state.public else folder.ca)


def _tell_redis(settings: Settings) -> str:
    try:
        with redis_client(settings, timeout=PATIENCE) as client:
            client.execute_command("ACL", "LOAD")
    except redis.RedisError as error:
        return _untold("redis", error)
    return DONE


async def _tell_nats(old: Settings, new: Settings) -> str:
    try:
        client = await Connection().open(old, NAME, inbox_prefix=INBOX)
        try:
            if old.nats() == new.nats():
                return await _reload(client)
            # It must be a request, or NATS would ignore it; but NATS disconnects us before it answers.
            subject = f"$SYS.REQ.SERVER.{await _server_id(client)}.RELOAD"
            await client.publish(subject, reply=client.new_inbox())
            with suppress(*TROUBLE):
                await client.flush(PATIENCE)
            return await _knows(new)
        finally:
            await client.close()
    except TROUBLE as error:
        return _untold("nats", error)


async def _server_id(client: Any) -> str:
    return str(json.loads((await client.request("$SYS.REQ.SERVER.PING", timeout=PATIENCE)).data)["server"]["id"])


async def _reload(client: Any) -> str:
    """Reload twice: after one reload, nats-server 2.15 passes nothing between a new account and the others."""
    refusal = None
    for _ in range(2):
        answer = await client.request(f"$SYS.REQ.SERVER.{await _server_id(client)}.RELOAD", timeout=PATIENCE)
        refusal = refusal or json.loads(answer.data or b"{}").get("error")
    return f"refuses its new users ({refusal['description']}): look at its log" if refusal else DONE


async def _knows(settings: Settings) -> str:
    """Retry until the new password is accepted, for `PATIENCE` seconds at most; raises NATS's error then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client = await Connection().open(settings, NAME, inbox_prefix=INBOX)
            try:
                return await _reload(client)
            finally:
                await client.close()
        except TROUBLE:  # disconnected once more, while NATS reads its users
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311  # jitter, no secret


def _untold(service: str, error: Exception) -> str:
    why = "it knows another password of operator" if is_refused_login(error) else reason(error)
    return f"not told ({why}); it reads its users when it starts: `docker compose restart {service}`"
