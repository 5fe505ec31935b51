"""The manifest of an archive: versions, counts, and the size and SHA-256 of every member."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

#: Version of the archives' format: the one that this HOWL writes, and the newest that it reads.
VERSION: Literal[1] = 1


def _harmless(path: str) -> str:
    """Accept only a path that stays below the folder it is joined to."""
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or PurePosixPath(path).is_absolute() or {"", ".", ".."} & {*parts}:
        raise ValueError("a path leads out of its folder")
    return path


HarmlessPath = Annotated[str, AfterValidator(_harmless)]
Identifier = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Member(_Part):
    """A member's size in bytes, and its SHA-256."""

    size: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Table(_Part):
    """A table's rows, as PostgreSQL's COPY writes them in text."""

    name: Identifier
    columns: list[Identifier]
    rows: Count
    member: HarmlessPath


class Record(_Part):
    """The database; a table comes after those it refers to."""

    revision: str = Field(pattern=r"^\w+$")
    postgresql: str
    tables: list[Table]


class Stored(_Part):
    """An object of the object store; `digest` is in NATS's form."""

    name: str
    description: str | None
    headers: dict[str, Any] | None
    chunk_size: int = Field(ge=1, le=64 << 20)
    size: Count
    digest: str
    member: HarmlessPath


class Bucket(_Part):
    """A bucket of the object store; `ttl` in seconds, `max_bytes` -1 where there is no limit."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    description: str | None
    ttl: float | None
    max_bytes: int | None
    storage: Literal["file", "memory"]
    replicas: int
    objects: list[Stored]


class Objects(_Part):
    """All buckets of one subject prefix."""

    nats: str
    subject_prefix: str
    buckets: list[Bucket]


class _Owned(_Part):
    mode: int = Field(ge=0, le=0o777)
    uid: Count
    gid: Count


class ConfigurationFolder(_Owned):
    """A folder of the configuration; `.` is the one that holds all others."""

    path: Literal["."] | HarmlessPath


class ConfigurationFile(_Owned):
    """A file of the configuration."""

    path: HarmlessPath
    member: HarmlessPath


class Configuration(_Part):
    """The server's configuration; a folder comes before what is in it, and `environment` is the `.env` beside it."""

    folders: list[ConfigurationFolder]
    files: list[ConfigurationFile]
    environment: ConfigurationFile | None


class Manifest(_Part):
    """The manifest, an archive's last member."""

    format: Literal["howl-backup"] = "howl-backup"
    version: Literal[1] = VERSION
    howl: str
    made_at: AwareDatetime
    record: Record
    objects: Objects
    configuration: Configuration | None
    members: dict[HarmlessPath, Member]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Raise ValueError unless everything described has a member, and every member is described once."""
        described = [table.member for table in self.record.tables]
        described += [stored.member for stored in self.stored()] + [file.member for file in self.files()]
        if sorted(described) != sorted(self.members):
            raise ValueError("its members are not those it describes")
        return self

    def stored(self) -> list[Stored]:
        """Return the objects of all buckets."""
        return [stored for bucket in self.objects.buckets for stored in bucket.objects]

    def files(self) -> list[ConfigurationFile]:
        """Return the configuration's files, `.env` included; none if there was no configuration."""
        kept = self.configuration
        return [*kept.files, *([kept.environment] if kept.environment else [])] if kept else []

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows, objects and configuration files."""
        return {
            "rows": sum(table.rows for table in self.record.tables),
            "objects": len(self.stored()),
            "configuration_files": len(self.files()),
        }


def newer_than_known(document: Any) -> bool:
    """Return whether this is a manifest of a later version of the format."""
    stated = document.get("version") if isinstance(document, dict) else None
    return isinstance(stated, int) and stated > VERSION
