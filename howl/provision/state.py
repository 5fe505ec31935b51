"""The state of a server as `howl init` stores it, so that running it again changes nothing by itself."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from howl.errors import ProvisionFailed
from howl.provision.permissions import Grant

#: Users of Redis or NATS beside the workers: `howl server` and people's commands; the container's health check; and
#: `howl init` itself, to have new credentials loaded.
SERVER, HEALTH, OPERATOR = "server", "health", "operator"
#: The workers' credentials: for burst machines, and for the permanent worker beside the servers.
WORKER, PERMANENT = "worker", "permanent"
#: PostgreSQL's roles: the owner of the tables, their reader, and the superuser, which no program uses.
OWNER, READER, SUPERUSER = "howl_server", "howl_reader", "postgres"
FLOWER = "flower"
#: The servers' names between containers, and on this machine.
INNER_NAMES = ("redis", "nats", "localhost", "127.0.0.1", "::1")
CREDENTIALS = (SERVER, HEALTH, OPERATOR, WORKER, PERMANENT, OWNER, READER, SUPERUSER, FLOWER)


@dataclass
class State:
    """A server's names and secrets."""

    #: The address that workers connect to.
    host: str
    #: Other names and addresses that the certificate covers.
    also: list[str] = field(default_factory=list)
    #: The address of this machine that Redis and NATS are published on.
    publish: str = "0.0.0.0"  # noqa: S104  # TLS and passwords protect them
    #: Whether the certificate was provided from elsewhere, and whether a public authority signed it.
    given: bool = False
    public: bool = False
    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    #: Queues by worker credential; None: all.
    grants: dict[str, list[str] | None] = field(default_factory=lambda: {WORKER: None, PERMANENT: None})

    def __post_init__(self) -> None:
        for name in (*CREDENTIALS, *self.grants):
            self.passwords.setdefault(name, new_password())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the state; None where nothing was made yet. Raises ProvisionFailed."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise ProvisionFailed(f"{path} is not what `howl init` wrote: put its backup back.") from None

    def document(self) -> str:
        """Return the state as JSON, for `read`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def names(self) -> list[str]:
        """Names in a certificate of our own: from outside, between containers, and on this machine."""
        published = [] if self.is_published_everywhere else [self.publish]
        return list(dict.fromkeys([self.host, *self.also, *published, *INNER_NAMES]))

    @property
    def is_published_everywhere(self) -> bool:
        """True if Redis and NATS listen on every address of the machine."""
        return self.publish in ("0.0.0.0", "::")  # noqa: S104

    @property
    def worker_grants(self) -> list[Grant]:
        return [Grant(name, None if queues is None else tuple(queues)) for name, queues in self.grants.items()]


def new_password() -> str:
    """Return 192 random bits, in characters that need no quoting in any file format or URL."""
    return secrets.token_hex(24)
