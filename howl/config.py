"""Settings: every variable that HOWL reads."""

import os
import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, AliasChoices, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from howl import env_file
from howl.errors import NotConfigured, SettingsError
from howl.join import Join, decode
from howl.local_stack import default_home, running_stack
from howl.setting_types import LOOPBACK_HOSTS as LOOPBACK_HOSTS
from howl.setting_types import (
    Api,
    CommaSeparated,
    Duration,
    Host,
    JoinString,
    Logins,
    Queues,
    RedisUrl,
    Schemes,
    plain,
    url_of,
)

#: Fields of which any one, when set, means that a server was chosen: then `howl up` is not used as a fallback.
LOCATION_FIELDS = (
    "redis_url", "nats_url", "database_url", "manager_host", "redis_host", "nats_host", "postgres_host", "join"
)  # fmt: skip

#: Fields of a join string that other settings may override; and those that they may where a tunnel to it ends.
OPEN, PORTS = frozenset({"key_prefix", "subject_prefix", "queues"}), frozenset({"redis_port", "nats_port"})


class Settings(env_file.FileSettings):
    """The settings of this process; after validation, URLs are complete, or None if none was given."""

    model_config = SettingsConfigDict(
        env_prefix="HOWL_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    redis_url: RedisUrl = Field(None, repr=False)
    nats_url: Annotated[str | None, AfterValidator(url_of("nats", "tls"))] = Field(None, repr=False)
    database_url: Annotated[str | None, AfterValidator(url_of("postgresql"))] = Field(None, repr=False)

    #: Addresses, CA and credential in one string, as `howl init join` prints it. No other setting may contradict it.
    join: JoinString = Field(None, repr=False)
    #: PEM file of the CA that signed the servers' certificate; without one, the CAs that the system trusts.
    ca_file: Path | None = None
    #: Whether to use TLS with the hosts and ports below; by default with HOWL_CA_FILE or HOWL_JOIN.
    tls: bool | None = None

    manager_host: Host = Field(None, validation_alias=plain("MANAGER_HOST"))
    redis_host: Host = Field(None, validation_alias=plain("REDIS_HOST"))
    redis_port: int = Field(6379, validation_alias=plain("REDIS_PORT"))
    redis_user: str | None = Field(None, validation_alias=plain("REDIS_USER"))
    redis_password: str | None = Field(None, repr=False, validation_alias=plain("REDIS_PASSWORD"))
    nats_host: Host = Field(None, validation_alias=plain("NATS_HOST"))
    nats_port: int = Field(4222, validation_alias=plain("NATS_PORT"))
    nats_user: str = Field("howl", validation_alias=plain("NATS_USER"))
    nats_password: str | None = Field(None, repr=False, validation_alias=plain("NATS_PASSWORD"))
    postgres_host: str | None = Field(None, validation_alias=plain("POSTGRES_HOST"))
    postgres_port: int = Field(5432, validation_alias=plain("POSTGRES_PORT"))
    postgres_db: str = Field("mcp_manager", validation_alias=plain("POSTGRES_DB"))
    postgres_user: str = Field("howl", validation_alias=plain("POSTGRES_USER"))
    postgres_password: str | None = Field(None, repr=False, validation_alias=plain("POSTGRES_PASSWORD"))

    #: Folder where embedded servers keep their data, and where `howl up` records that it is running.
    home: Path = Field(default_factory=default_home)
    #: Prefix of every Redis key.
    key_prefix: str = "howl:"
    #: Prefix of every NATS subject, before a dot.
    subject_prefix: str = Field("howl", pattern=r"^[A-Za-z0-9_-]+$")
    #: Queues a worker takes tasks from when its command line names none.
    queues: Queues = ()
    #: The Celery application that HOWL runs and submits to, as `celery -A` takes it; None: HOWL's own.
    app: str | None = None
    #: Modules with tasks, in addition to those in workers/ or those of HOWL_APP.
    task_modules: CommaSeparated = ()

    worker_id: str | None = Field(None, validation_alias=plain("WORKER_ID"))
    worker_tags: CommaSeparated = Field((), validation_alias=plain("WORKER_TAGS"))
    #: Where a worker runs: server, github-actions, docker or local; None lets the worker detect it.
    worker_origin: str | None = Field(None, pattern="^(server|github-actions|docker|local)$")
    #: Time at which this worker will end; `howl worker --runtime` sets it.
    worker_deadline: datetime | None = None

    #: The repository whose runners bursts are started on, as owner/name, and a token that may start its workflows.
    github_repository: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")
    github_token: SecretStr | None = Field(None, repr=False)
    #: The workflow's file name, and the branch or tag it runs from.
    github_workflow: str = Field("burst.yml", pattern=r"^[A-Za-z0-9_.-]+$")
    github_ref: str = "main"
    github_api: Api = "https://api.github.com"
    #: Most minutes of GitHub's runners for bursts in a calendar month (UTC), and most burst workers at once.
    budget_minutes: int = Field(2000, ge=0)
    burst_concurrency: int = Field(20, ge=0)
    #: Share of both, from 0 to 1, for runs that ask with a worker's credential, except those that HOWL started.
    budget_share: float = Field(0.5, ge=0, le=1)

    #: When the server starts bursts itself: cron expressions (UTC), and a threshold such as `waiting > 100`.
    burst_schedule: str | None = None
    burst_when: str | None = None
    #: Workers of such a burst, and seconds until they end.
    burst_workers: int = Field(3, ge=1)
    burst_runtime: Duration = 1800.0
    #: Seconds between two bursts that the threshold starts, and number of bursts under way from which it starts none.
    burst_cooldown: Duration = 600.0
    burst_most: int = Field(1, ge=1)

    #: File that a worker touches while its loop runs, for a container's health check.
    pulse_file: Path | None = None

    #: Whether a worker reports its tasks' events to NATS; it always reports its own presence.
    task_events: bool = True
    #: Logins for Flower, as user:password.
    flower_basic_auth: Logins = Field((), repr=False, validation_alias=plain("FLOWER_BASIC_AUTH"))

    #: Seconds between two heartbeats of a worker, and seconds without one after which it counts as lost.
    heartbeat_interval: float = Field(5.0, gt=0)
    lost_after: float = Field(25.0, gt=0)
    #: Seconds of a worker's lease on its claims; renewed three times as often.
    lease: float = Field(30.0, gt=0)
    #: Seconds after which a submitted task that Redis does not know is pushed again.
    push_again_after: float = Field(60.0, gt=0)
    #: Largest outcome in bytes; a larger result fails its task with a clear error.
    outcome_limit: int = Field(1 << 20, gt=1024)
    #: Most bytes of outcomes that may wait in Redis to be recorded; above it, workers take no more tasks.
    backlog_limit: int = Field(256 << 20, gt=1024)
    #: Most bytes per hour that one credential's workers may have recorded in PostgreSQL; the rest waits in Redis.
    record_limit: int = Field(8 << 30, ge=1 << 20)
    #: Seconds that a chord waits for its parts, and seconds that it is kept after that.
    chord_retention: Duration = 30 * 86_400.0
    #: Most bytes of one file that a task produces, most bytes of all files of a run, and most files of a run.
    artifact_limit: int = Field(100 << 20, ge=1)
    artifact_run_limit: int = Field(250 << 20, ge=1)
    artifact_run_count: int = Field(1000, ge=1)
    #: Most bytes of all files on the server, most files, the share of both (from 0 to 1) that a worker's credential may
    #: use, and seconds that files are kept.
    artifact_room: int = Field(1 << 30, ge=1 << 20)
    artifact_count: int = Field(20_000, ge=1)
    artifact_share: float = Field(0.5, gt=0, le=1)
    artifact_retention: Duration = 30 * 86_400.0
    #: Shell-like template of a headless coding agent, e.g. `cursor-agent -p --force`; see workers/agent.py.
    agent_command: str | None = None
    #: Seconds after which an agent is ended if its task has no limit of its own.
    agent_timeout: Duration = 3600.0
    #: Names of the worker's own variables that a coding agent receives, e.g. the one with its API key.
    agent_env: CommaSeparated = ()
    #: Parent of the folders that agents work in; without one, the system's folder of temporary files.
    work_folder: Path | None = None
    #: Repository, an address or a folder here, that agents work in when their task names none.
    agent_repository: str | None = None
    #: URL schemes by which a task may name a repository.
    checkout_schemes: Schemes = ("https",)
    #: Most bytes of a repository: of what is fetched, and of the files of the commit.
    checkout_limit: int = Field(1 << 30, ge=1 << 10)
    #: Whether command.* and agent.* may run on this machine although it is a permanent one.
    allow_commands: bool = False
    #: Chrome or Chromium for browser.*, as a path or a name in PATH; None: one of the usual names.
    browser: str | None = None
    #: Whether it keeps its sandbox, which root cannot use and many containers do not allow.
    browser_sandbox: bool = True
    #: Whether web.* and browser.* on this worker may reach private, loopback and link-local addresses.
    web_allow_private: bool = False
    #: Refuse any server that is not on this machine: set for demo and tests.
    loopback_only: bool = False

    #: Certificate of the CA, PEM.
    _ca: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._learn_from_join()
        if self.ca_file is not None:
            self._ca = _authority(self.ca_file)
        found = self._urls_from_parts() or self._urls_of_running_stack()
        for field, url in found.items():
            # The model is frozen for its users, but must be completed when it is made.
            self.__dict__[field] = url
        if self.loopback_only:
            self._refuse_other_hosts()
        return self

    @property
    def ca(self) -> str | None:
        """The certificate (PEM) of the CA that Redis's and NATS's are checked against; None: the system's CAs."""
        return self._ca

    def _learn_from_join(self) -> None:
        """Set all of Redis and NATS; raises ValueError if another setting would send the password elsewhere.

        A repository's `.env` may be a stranger's: only this process's environment may name the end of a tunnel to the
        join string's servers, on this machine, where their CA's certificate is required all the same.
        """
        if self.join is None:
            return
        join = decode(self.join)
        self._ca = join.ca or None
        is_tunnel = join.ca != "" and self.manager_host in LOOPBACK_HOSTS and _is_exported(self, "manager_host")
        told = _told_by(join, host=self.manager_host if is_tunnel and self.manager_host else join.host)
        refused = []
        for field, value in told.items():
            is_given = field in self.model_fields_set
            if is_given and (field in OPEN or (is_tunnel and field in PORTS and _is_exported(self, field))):
                continue
            if is_given and getattr(self, field) != value:
                refused.append(field)
            self.__dict__[field] = value
        if refused := refused + self._ways_round(join, is_tunnel=is_tunnel):
            names = ", ".join(sorted(_variables(field)[-1] for field in refused))
            raise ValueError(
                f"HOWL_JOIN alone says where Redis and NATS are, who logs in, and how they are checked: unset {names}, "
                "in the environment and in .env"
            )

    def _ways_round(self, join: Join, *, is_tunnel: bool) -> list[str]:
        """Return settings that would bypass the join string after its values have been set."""
        ways = {
            "tls": self.tls is False,
            "ca_file": self.ca_file is not None,
            "manager_host": self.manager_host not in (None, join.host) and not is_tunnel,
            "redis_url": self.redis_url not in (None, self._redis_from_host()),
            "nats_url": self.nats_url not in (None, self._nats_from_host()),
        }
        return [field for field, leads_round in ways.items() if leads_round]

    def _urls_from_parts(self) -> dict[str, str]:
        """Return URLs by field: explicit ones, else from hosts, ports and passwords; none if no place was named."""
        if not any(getattr(self, field) for field in LOCATION_FIELDS):
            return {}
        urls: dict[str, str | None] = {
            "redis_url": self.redis_url or self._redis_from_host(),
            "nats_url": self.nats_url or self._nats_from_host(),
            "database_url": self.database_url or self._database_from_host(),
        }
        return {field: url for field, url in urls.items() if url}

    def _redis_from_host(self) -> str | None:
        host, scheme = self.redis_host or self.manager_host, "rediss" if self._speaks_tls() else "redis"
        login = _login(self.redis_user or "", self.redis_password)
        return host and f"{scheme}://{login}{_host(host)}:{self.redis_port}/0"

    def _nats_from_host(self) -> str | None:
        host, scheme = self.nats_host or self.manager_host, "tls" if self._speaks_tls() else "nats"
        return host and f"{scheme}://{_login(self.nats_user, self.nats_password)}{_host(host)}:{self.nats_port}"

    def _speaks_tls(self) -> bool:
        return self.tls if self.tls is not None else self._ca is not None or self.join is not None

    def _database_from_host(self) -> str | None:
        # A burst worker is given MANAGER_HOST and never PostgreSQL's password: it has no database.
        host = self.postgres_host or (self.manager_host if self.postgres_password else None)
        login = _login(self.postgres_user, self.postgres_password) or f"{quote(self.postgres_user, safe='')}@"
        return host and f"postgresql://{login}{_host(host)}:{self.postgres_port}/{self.postgres_db}"

    def _urls_of_running_stack(self) -> dict[str, str]:
        """Return the servers of this user's running `howl up`; none on a GitHub runner, where mistakes must be loud."""
        if os.environ.get("GITHUB_ACTIONS") == "true":
            return {}
        return running_stack(self.home)

    def _refuse_other_hosts(self) -> None:
        for field in ("redis_url", "nats_url", "database_url"):
            url = getattr(self, field)
            if url and urlsplit(url).hostname not in LOOPBACK_HOSTS:
                raise ValueError(f"HOWL_{field.upper()} names another machine, and HOWL_LOOPBACK_ONLY is set")

    def urls(self) -> list[str]:
        """Return the known addresses of Redis, NATS and PostgreSQL."""
        return [url for url in (self.redis_url, self.nats_url, self.database_url) if url]

    def redis(self) -> str:
        """Return Redis's URL; raises NotConfigured."""
        return self.redis_url or self._missing("Redis", "HOWL_REDIS_URL (or HOWL_JOIN, MANAGER_HOST)")

    def nats(self) -> str:
        """Return NATS's URL; raises NotConfigured."""
        return self.nats_url or self._missing("NATS", "HOWL_NATS_URL (or HOWL_JOIN, MANAGER_HOST)")

    def database(self) -> str:
        """Return PostgreSQL's URL; raises NotConfigured."""
        return self.database_url or self._missing("PostgreSQL", "HOWL_DATABASE_URL (or POSTGRES_HOST)")

    def _missing(self, what: str, variable: str) -> str:
        raise NotConfigured(f"No address of {what} is known: set {variable}, or run `howl up` in another terminal.")

    def key(self, name: str) -> str:
        """Return a Redis key under the prefix: `key("outcomes")` is `howl:outcomes`."""
        return f"{self.key_prefix}{name}"


#: Settings that the process keeps, see `keep`.
_kept: dict[str, Settings] = {}


def load_settings(**given: Any) -> Settings:
    """Read settings from `given`, then the environment, then the file that HOWL_ENV_FILE names (empty: none).

    If it is not set, a `.env` here that is the user's own is read, except settings that load code. Raises
    SettingsError, which names each wrong variable; values are never shown.
    """
    if _kept and not given:
        return _kept["settings"]
    try:
        return Settings(_env_file=env_file.chosen(), **given)
    except ValidationError as error:
        raise SettingsError(f"Wrong setting: {'; '.join(map(_explain, error.errors(include_url=False)))}.") from None


def keep(settings: Settings) -> None:
    """Have `load_settings()` return these, here and in forked children: their sources will be gone."""
    _kept["settings"] = settings


def secret_variables() -> frozenset[str]:
    """Return the names of variables that hold a credential: those of settings that no representation shows."""
    names = [_variables(name) for name, field in Settings.model_fields.items() if not field.repr]
    return frozenset(name for either in names for name in either)


def _is_exported(settings: Settings, field: str) -> bool:
    """Return whether the value comes from this process's environment, and not from a file."""
    return str(getattr(settings, field)) in map(os.environ.get, _variables(field))


def _variables(field: str) -> tuple[str, ...]:
    """Return the variables that give a setting; the last is the name that people use."""
    alias = Settings.model_fields[field].validation_alias
    return tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (f"HOWL_{field.upper()}",)


def _told_by(join: Join, host: str) -> dict[str, Any]:
    """Return the settings of a join string by field name."""
    told = {"host": host, "user": join.user, "password": join.password}
    redis, nats = ({f"{server}_{name}": value for name, value in told.items()} for server in ("redis", "nats"))
    ports = {"redis_port": join.redis_port, "nats_port": join.nats_port}
    prefixes = {"key_prefix": join.key_prefix, "subject_prefix": join.subject_prefix}
    return redis | nats | ports | prefixes | {"queues": join.queues}


def _authority(path: Path) -> str:
    """Return the file's text; raises ValueError unless it holds certificates."""
    try:
        text = path.read_text()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no certificate in PEM form"
        raise ValueError(f"HOWL_CA_FILE: {path} cannot be used ({why}): give the server's ca.crt") from None
    return text


def _login(user: str, password: str | None) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _explain(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    return f"{name if name.isupper() else f'HOWL_{name.upper()}'}: {message}"
