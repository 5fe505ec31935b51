"""Join strings, with which workers connect: one for each credential that `howl init` knows."""

import re

from howl.errors import ProvisionFailed
from howl.join import Join, encode
from howl.provision import environment
from howl.provision.folder import Folder
from howl.provision.state import CREDENTIALS, WORKER, State, new_password

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def grant(state: State, queues: tuple[str, ...], name: str | None) -> tuple[str, bool]:
    """Return the name of a worker credential for these queues (none: all), and whether it is new.

    Adds a new one to `state`. Raises ProvisionFailed.
    """
    wanted = list(queues) or None
    name = name or (WORKER if wanted is None else _name_of(queues))
    if not NAME.fullmatch(name) or (name in CREDENTIALS and name not in state.grants):
        raise ProvisionFailed(f"A credential cannot be called {name!r}: give another --name, of letters and digits.")
    if name in state.grants:
        if sorted(state.grants[name] or []) != sorted(wanted or []):
            raise ProvisionFailed(f"The credential {name} is for other queues: give another --name.")
        return name, False
    state.grants[name] = wanted
    state.passwords[name] = new_password()
    return name, True


def _name_of(queues: tuple[str, ...]) -> str:
    return f"{WORKER}-{re.sub(r'[^a-z0-9_-]', '-', '-'.join(sorted(queues)).lower())}"[:63]


def join_string(folder: Folder, state: State, name: str) -> str:
    """Return the string that a worker elsewhere is given; it is secret."""
    return encode(joined(folder, state, name))


def joined(folder: Folder, state: State, name: str) -> Join:
    """Return the same, decoded."""
    told = environment.read(folder.env)
    key_prefix, subject_prefix = folder.prefixes
    return Join(
        host=state.host,
        redis_port=int(told.get("REDIS_PORT") or 6379),
        nats_port=int(told.get("NATS_PORT") or 4222),
        user=name,
        password=state.passwords[name],
        key_prefix=key_prefix,
        subject_prefix=subject_prefix,
        queues=tuple(state.grants.get(name) or ()),
        ca="" if state.public else folder.ca.read_text(),
    )
