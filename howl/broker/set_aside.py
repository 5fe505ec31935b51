"""Rows that a part of the server cannot process: tried a few times, then set aside, and reported for a day.

A part that stopped at the first such row would do nothing for all the others.
"""

from typing import Any

from redis.utils import str_if_bytes

from howl.config import Settings
from howl.errors import visible

#: Times that something is tried, once per round of maintenance, before it is set aside.
TRIES = 5
#: Keys of tries (`<kind>:<name>`) and of what was set aside (`<kind>:number`, `<kind>:last`); seconds both are kept.
TRIED, SET_ASIDE, KEPT = "_tries", "_set_aside", 86_400
#: Most characters of a reason and of a name, which may be a worker's text.
REASON_LIMIT, NAME_LIMIT = 200, 100


def is_last_try(client: Any, settings: Settings, kind: str, name: str) -> bool:
    """Count a failed try; return whether it was the last. Raises redis's errors: none counts while Redis is away."""
    key, field = settings.key(TRIED), f"{kind}:{name}"
    with client.pipeline(transaction=True) as together:
        together.hincrby(key, field, 1)
        together.expire(key, KEPT)
        count, _ = together.execute()
    if count < TRIES:
        return False
    client.hdel(key, field)
    return True


def note(client: Any, settings: Settings, kind: str, name: str, why: BaseException | str) -> None:
    """Report in `howl queues` and `howl doctor` that something was set aside; raises redis's errors."""
    key = settings.key(SET_ASIDE)
    with client.pipeline(transaction=True) as together:
        together.hincrby(key, f"{kind}:number", 1)
        together.hset(key, f"{kind}:last", f"{visible(name[:NAME_LIMIT])}: {in_short(why)}")
        together.expire(key, KEPT)
        together.execute()


def told(found: dict[Any, Any]) -> dict[str, str]:
    """Return by kind, from the fields of the key SET_ASIDE, how many were set aside, and why the last one was."""
    found = {str_if_bytes(name): str_if_bytes(value) for name, value in found.items()}
    kinds = sorted(name.rpartition(":")[0] for name in found if name.endswith(":number"))
    return {kind: f"{found[f'{kind}:number']}; the last: {found.get(f'{kind}:last', '')}" for kind in kinds}


def in_short(why: BaseException | str) -> str:
    """Return a reason as one line that is safe to show to people."""
    text = why if isinstance(why, str) else str(why) or repr(why)
    # Cut first: what a worker wrote may be megabytes long.
    return visible(" ".join(text[:REASON_LIMIT].split()))
