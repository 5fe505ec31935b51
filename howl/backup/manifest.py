"""What an archive says of itself: versions, counts, and the size and SHA-256 of every member."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

#: The form of the archives that this version writes, and the newest that it reads.
VERSION: Literal[1] = 1


def _harmless(path: str) -> str:
    """A path that stays below the folder it is joined to."""
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
    """A member's bytes."""

    size: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Table(_Part):
    """A table's rows, as PostgreSQL's COPY writes them in text."""

    name: Identifier
    columns: list[Identifier]
    rows: Count
    member: HarmlessPath


class Record(_Part):
    """The database; a table stands behind those it refers to."""

    revision: str = Field(pattern=r"^\w+$")
    postgresql: str
    tables: list[Table]


class Stored(_Part):
    """One object; `digest` is as NATS writes it."""

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
    """All buckets under one subject prefix."""

    nats: str
    subject_prefix: str
    buckets: list[Bucket]


class _Owned(_Part):
    mode: int = Field(ge=0, le=0o777)
    uid: Count
    gid: Count


class ConfigurationFolder(_Owned):
    """A folder of the configuration; `.` is the one that holds all."""

    path: Literal["."] | HarmlessPath


class ConfigurationFile(_Owned):
    """A file of the configuration."""

    path: HarmlessPath
    member: HarmlessPath


class Configuration(_Part):
    """What `howl init` made; a folder comes before what is in it, and `.env` is beside them all."""

    folders: list[ConfigurationFolder]
    files: list[ConfigurationFile]
    environment: ConfigurationFile | None


class Manifest(_Part):
    """The last member of an archive."""

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
        """Everything that is described has a member, and every member is described, once."""
        described = [table.member for table in self.record.tables]
        described += [stored.member for stored in self.stored()] + [file.member for file in self.files()]
        if sorted(described) != sorted(self.members):
            raise ValueError("its members are not those it describes")
        return self

    def stored(self) -> list[Stored]:
        """The objects of all buckets."""
        return [stored for bucket in self.objects.buckets for stored in bucket.objects]

    def files(self) -> list[ConfigurationFile]:
        """The configuration's files; none where there was no configuration."""
        kept = self.configuration
        return [*kept.files, *([kept.environment] if kept.environment else [])] if kept else []

    def counts(self) -> dict[str, int]:
        """How much there is of everything."""
        return {
            "rows": sum(table.rows for table in self.record.tables),
            "objects": len(self.stored()),
            "configuration_files": len(self.files()),
        }


def newer_than_known(document: Any) -> bool:
    """Whether this is the manifest of a later form of archive."""
    stated = document.get("version") if isinstance(document, dict) else None
    return isinstance(stated, int) and stated > VERSION
