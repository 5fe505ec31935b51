"""The `.env` beside docker-compose.yml, which compose and the commands on this machine read."""

import re
from collections.abc import Mapping
from pathlib import Path

from howl.provision.state import FLOWER, OWNER, PERMANENT, READER, SERVER, State

LINE = re.compile(r"^(?P<name>[A-Z_][A-Z0-9_]*)=(?P<value>.*)$", re.MULTILINE)
#: Variables that must agree with the servers' users and passwords.
SECRETS = (
    "REDIS_USER", "REDIS_PASSWORD", "NATS_USER", "NATS_PASSWORD", "POSTGRES_USER", "POSTGRES_PASSWORD",
    "READER_PASSWORD", "PERMANENT_PASSWORD", "FLOWER_BASIC_AUTH",
)  # fmt: skip
HEADER = "# Written by `howl init`, which only adds what is missing; .env.example says what else may stand here.\n"


def variables(state: State, ca: Path) -> dict[str, str]:
    """Return every variable that follows from the server's state; `ca` is the path of its authority's certificate."""
    passwords = state.passwords
    return {
        "MANAGER_HOST": state.host,
        "PUBLISH_ADDRESS": state.publish,
        **_addresses(state),
        "POSTGRES_HOST": "127.0.0.1",
        "HOWL_TLS": "1",
        "HOWL_CA_FILE": "" if state.public else str(ca),
        "INSIDE_CA": "" if state.public else "/etc/howl/ca.crt",
        "REDIS_USER": SERVER,
        "REDIS_PASSWORD": passwords[SERVER],
        "NATS_USER": SERVER,
        "NATS_PASSWORD": passwords[SERVER],
        "POSTGRES_USER": OWNER,
        "POSTGRES_PASSWORD": passwords[OWNER],
        "READER_PASSWORD": passwords[READER],
        "PERMANENT_PASSWORD": passwords[PERMANENT],
        "FLOWER_BASIC_AUTH": f"howl:{passwords[FLOWER]}",
    }


def _addresses(state: State) -> dict[str, str]:
    """Return Redis's and NATS's hosts, from this machine and between containers: names that the certificate covers."""
    here = "127.0.0.1" if state.is_published_everywhere else state.publish
    inside = {"REDIS": "redis", "NATS": "nats"}
    if state.given:  # the certificate covers the outer name alone, by which compose then calls the containers too
        here, inside = state.host, dict.fromkeys(inside, state.host)
    return {f"{server}_HOST": here for server in inside} | {f"INSIDE_{server}": name for server, name in inside.items()}


def read(path: Path) -> dict[str, str]:
    """Return the file's values by variable; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    return {match["name"]: match["value"].strip().strip("'\"") for match in LINE.finditer(text)}


def merged(text: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return `text` with missing variables added, secrets and changes since `before` replaced, other lines kept."""
    present = {match["name"] for match in LINE.finditer(text)}
    due = {name: value for name, value in now.items() if name in SECRETS or before.get(name, value) != value}
    text = LINE.sub(lambda line: _line(line["name"], due[line["name"]]) if line["name"] in due else line[0], text)
    missing = [_line(name, value) for name, value in now.items() if name not in present]
    joint = "" if not text or text.endswith("\n") else "\n"
    return (text or HEADER) + joint + "".join(f"{line}\n" for line in missing)


def _line(name: str, value: str) -> str:
    return f"{name}={value}" if re.fullmatch(r"[\w./:@-]*", value) else f"{name}='{value}'"
