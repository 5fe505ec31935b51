"""Rotation of one credential while the servers run."""

from copy import deepcopy

from howl.errors import ProvisionFailed
from howl.provision.folder import Folder, build
from howl.provision.reload import tell
from howl.provision.state import FLOWER, HEALTH, OPERATOR, OWNER, PERMANENT, READER, SERVER, new_password

UP = "run `docker compose up --detach`"
ROLES = (
    "PostgreSQL still knows the old one: run `docker compose exec postgres psql -U postgres -d mcp_manager "
    "-f /docker-entrypoint-initdb.d/roles.sql`"
)
#: What is left to do by hand after a rotation, by credential.
LEFT = {
    SERVER: f"The containers still know the old one: {UP}.",
    PERMANENT: f"The permanent worker still knows the old one: {UP}.",
    FLOWER: f"Flower still knows the old one: {UP}.",
    OWNER: f"{ROLES}, then {UP}.",
    READER: f"{ROLES}, then {UP}.",
    HEALTH: "Nothing is left to do: Redis's health check reads its file.",
    OPERATOR: "Nothing is left to do: `howl init` alone uses it.",
}
NEW_JOIN = "Workers that hold the old one are out: store a new HOWL_JOIN, which `howl init join` prints."


def rotate(folder: Folder, name: str) -> list[str]:
    """Give `name` a new password; return what was done and what is left to do, a sentence each.

    Raises ProvisionFailed.
    """
    state = folder.existing()
    if name not in LEFT and name not in state.grants:
        raise ProvisionFailed(
            f"There is no credential {name!r}; there are {', '.join(sorted({*LEFT, *state.grants}))}."
        )
    before = deepcopy(state)
    state.passwords[name] = new_password()
    build(folder, state)
    told = tell(folder, before, state) if name in (SERVER, HEALTH, OPERATOR, *state.grants) else []
    return [f"{name} has a new password.", *told, LEFT.get(name, NEW_JOIN)]
