"""A backup restored into empty servers is what was there; anything else is refused, and changes nothing."""

import gzip
import io
import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from howl.backup import archive, make
from howl.backup.restore import restore, restore_configuration
from howl.config import Settings
from howl.connections.postgres import session
from howl.errors import ArchiveRefused, BackupFailed, DatabaseUnavailable, RestoreRefused
from howl.models import Task
from howl.server import migrate
from tests.helpers import backup_content
from tests.helpers.support import Process, eventually

pytestmark = pytest.mark.servers


def quietly(step: str, done: int, total: int | None) -> None:
    """Nobody watches."""


@pytest.fixture
def full(settings: Settings, empty: Settings) -> Iterator[Settings]:
    """Servers with something of everything."""
    backup_content.fill_database(settings)
    backup_content.fill_buckets(settings)
    yield settings
    for used in (settings, empty):
        backup_content.drop_buckets(used)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration."""
    backup_content.fill_folder(tmp_path / "old" / "howl-server")
    return tmp_path / "old" / "howl-server"


@pytest.fixture
def made(full: Settings, folder: Path, tmp_path: Path) -> Path:
    """A backup of all that."""
    path = tmp_path / "howl.tar.gz"
    make.backup(full, path, folder, quietly)
    return path


def test_a_backup_restored_into_empty_servers_is_row_by_row_and_object_by_object_what_was_there(
    made: Path, full: Settings, empty: Settings, folder: Path, tmp_path: Path
) -> None:
    restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    assert backup_content.all_rows(empty) == backup_content.all_rows(full)
    assert backup_content.all_objects(empty) == backup_content.all_objects(full)
    assert backup_content.all_files(tmp_path / "new" / "howl-server") == backup_content.all_files(folder)
    assert all(backup_content.all_rows(full).values())
    assert [len(objects) for _, objects in backup_content.all_objects(full).values()] == [
        0,
        len(backup_content.CONTENTS),
    ]


def test_a_backup_is_for_its_owner_alone_and_says_what_it_holds(made: Path, full: Settings) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    manifest = archive.verify(made, quietly)
    rows = {table.name: table.rows for table in manifest.record.tables}
    assert rows == {name: len(rows) for name, rows in backup_content.all_rows(full).items()}
    assert manifest.counts()["objects"] == len(backup_content.CONTENTS)
    assert backup_content.OTHER_BUCKET not in [bucket.name for bucket in manifest.objects.buckets]


def test_a_backup_holds_one_moment_although_rows_are_written_meanwhile(
    full: Settings, empty: Settings, tmp_path: Path
) -> None:
    before = backup_content.all_rows(full)

    def write_more(step: str, done: int, total: int | None) -> None:
        if step.startswith("table") and done == 0:
            with session(full.database()) as opened:
                opened.add(Task(task_id=f"late {step}"))

    make.backup(full, tmp_path / "b.tar.gz", None, write_more)
    restore(empty, tmp_path / "b.tar.gz", tmp_path / "new" / "howl-server", quietly)
    assert backup_content.all_rows(empty) == before
    assert len(backup_content.all_rows(full)["tasks"]) > len(before["tasks"])


def test_new_rows_are_numbered_above_those_that_came_back(made: Path, empty: Settings, tmp_path: Path) -> None:
    restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    with psycopg.connect(empty.database()) as connection:
        query = "INSERT INTO task_events (task_id, kind) VALUES ('x', 'y') RETURNING event_id = 51"
        assert connection.execute(query).fetchone() == (True,)


@pytest.mark.parametrize("migrated", [False, True], ids=["no tables", "newer tables"])
def test_a_backup_of_older_tables_is_brought_up_to_date(
    migrated: bool, made: Path, full: Settings, empty: Settings, newer_version: None, tmp_path: Path
) -> None:
    if migrated:
        migrate.upgrade(empty.database())
    restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    migrate.require_current(empty.database())
    with psycopg.connect(empty.database()) as connection:
        later = connection.execute("SELECT count(*) FROM tasks WHERE later = 7").fetchone()
    assert later == (len(backup_content.all_rows(full)["tasks"]),)


@pytest.fixture
def newer_version(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this HOWL has one more migration than the backup knows."""
    folder, ours = tmp_path / "migrations", migrate.configuration
    shutil.copytree(ScriptDirectory.from_config(ours("")).dir, folder)
    (folder / "versions" / "next.py").write_text(
        f"from alembic import op\nrevision, down_revision = 'next', '{migrate.head()}'\n"
        "def upgrade(): op.execute('ALTER TABLE tasks ADD later int NOT NULL DEFAULT 7')\n"
        "def downgrade(): op.execute('ALTER TABLE tasks DROP later')\n"
    )

    def theirs(url: str) -> Config:
        config = ours(url)
        config.set_main_option("script_location", str(folder))
        return config

    monkeypatch.setattr(migrate, "configuration", theirs)


def test_servers_with_nothing_in_them_are_backed_up_and_restored_too(
    settings: Settings, empty: Settings, tmp_path: Path
) -> None:
    manifest = make.backup(settings, tmp_path / "b.tar.gz", None, quietly)
    assert set(manifest.counts().values()) == {0}
    assert restore(empty, tmp_path / "b.tar.gz", None, quietly).queued_again == 0
    assert not any(backup_content.all_rows(empty).values())


# --- tasks under way -----------------------------------------------------------------------------------------------


def test_tasks_that_were_open_run_after_a_restore_although_redis_is_empty(
    full: Settings, empty: Settings, env: dict[str, str], start: Callable[..., Process], tmp_path: Path
) -> None:
    with session(full.database()) as opened:
        opened.add(backup_content.running_task(pushed_at=backup_content.NOW))
    make.backup(full, tmp_path / "b.tar.gz", None, quietly)
    assert restore(empty, tmp_path / "b.tar.gz", None, quietly).queued_again == 1
    addresses = {"HOWL_REDIS_URL": empty.redis(), "HOWL_NATS_URL": empty.nats(), "HOWL_DATABASE_URL": empty.database()}
    start("server", env=env | addresses)
    start("worker", "--name", "w2", "--pool", "solo", env=env | addresses)
    assert eventually(lambda: results(empty, "waiting", "running")) == {"waiting": 42, "running": 2}


def test_a_task_that_nobody_submitted_stays_as_it_was_recorded(full: Settings, empty: Settings, tmp_path: Path) -> None:
    with session(full.database()) as opened:
        opened.add(backup_content.running_task(pushed_at=None))
    make.backup(full, tmp_path / "b.tar.gz", None, quietly)
    assert restore(empty, tmp_path / "b.tar.gz", None, quietly).queued_again == 0
    assert backup_content.all_rows(empty) == backup_content.all_rows(full)


def results(settings: Settings, *task_ids: str) -> dict[str, Any] | None:
    """Results by task; None while one of them has not ended."""
    with session(settings.database()) as opened:
        tasks = [opened.get_one(Task, task_id) for task_id in task_ids]
        return {task.task_id: task.result for task in tasks} if all(task.finished_at for task in tasks) else None


# --- a backup that does not come to its end ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_backup_leaves_nothing(
    number: signal.Signals, full: Settings, env: dict[str, str], start: Callable[..., Process], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with psycopg.connect(full.database()) as connection:
        connection.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")  # the backup waits in the middle
        process = start("backup", str(target / "b.tar.gz"), env=env)
        eventually(lambda: list(target.iterdir()))
        eventually(lambda: waits_for_a_lock(connection))
        process.signal(number)
        assert process.wait() == 1
    assert "Traceback" not in process.output
    assert list(target.iterdir()) == []


def waits_for_a_lock(connection: psycopg.Connection) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tasks'::regclass"
    return bool((connection.execute(query).fetchone() or (0,))[0])


def test_a_backup_without_nats_leaves_nothing_and_says_so(full: Settings, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    absent = full.model_copy(update={"nats_url": "nats://howl:secret-word@127.0.0.1:9"})
    with pytest.raises(BackupFailed, match="NATS's object store cannot be used") as failure:
        make.backup(absent, target / "b.tar.gz", None, quietly)
    assert "secret-word" not in str(failure.value)
    assert list(target.iterdir()) == []


def test_a_backup_never_replaces_another(made: Path, full: Settings) -> None:
    before = made.read_bytes()
    with pytest.raises(BackupFailed, match="exists already"):
        make.backup(full, made, None, quietly)
    assert made.read_bytes() == before


def test_a_backup_that_finds_no_room_says_so_and_leaves_nothing(
    full: Settings, env: dict[str, str], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    # A limit of 100 KiB a file: less than the random bytes that are to be kept need.
    command = ["bash", "-c", f'ulimit -f 100; exec {sys.executable} -m howl.cli backup "$0"', str(target / "b.tar.gz")]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert re.fullmatch(r"Error: .*b\.tar\.gz cannot be written: File too large\..*\n", answer.stderr)
    assert list(target.iterdir()) == []


def test_a_database_that_is_behind_is_not_backed_up(empty: Settings, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="run `howl migrate`"):
        make.backup(empty, tmp_path / "b.tar.gz", None, quietly)


def test_a_folder_that_is_no_configuration_is_refused(full: Settings, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with (tmp_path / "home" / "film").open("wb") as film:
        film.truncate(17 << 20)
    with pytest.raises(BackupFailed, match="holds too much for a configuration"):
        make.backup(full, tmp_path / "b.tar.gz", tmp_path / "home", quietly)


# --- archives that are not what they should be ---------------------------------------------------------------------

_kept: list[bytes] = []


@pytest.fixture
def spoilt(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound archive to spoil, made once."""
    if not _kept:
        _kept.append(request.getfixturevalue("made").read_bytes())
    path = tmp_path / "spoilt.tar.gz"
    path.write_bytes(_kept[0])
    return path


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members: {name: content}, in their order."""
    with tarfile.open(path) as tar:
        held = {entry.name: tar.extractfile(entry).read() for entry in tar}
    change(held)
    other = path.with_name("other.tar.gz")
    with tarfile.open(other, "w:gz") as tar:
        for name, data in held.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return other


def manifest_with(**given: Any) -> Callable[[dict[str, bytes]], None]:
    def change(held: dict[str, bytes]) -> None:
        held["manifest.json"] = json.dumps(json.loads(held["manifest.json"]) | given).encode()

    return change


def a_row_more(held: dict[str, bytes]) -> None:
    held["database/workers.copy"] += held["database/workers.copy"]


def a_member_less(held: dict[str, bytes]) -> None:
    del held["database/workers.copy"]


def a_member_more(held: dict[str, bytes]) -> None:
    held["late"] = b"behind the manifest"


def no_manifest(held: dict[str, bytes]) -> None:
    del held["manifest.json"]


def a_path_that_leads_out(held: dict[str, bytes]) -> None:
    text = held["manifest.json"].decode()
    held["manifest.json"] = text.replace('"path": "redis.conf"', '"path": "../redis.conf"').encode()
    assert held["manifest.json"] != text.encode()


def an_absolute_path(held: dict[str, bytes]) -> None:
    text = held["manifest.json"].decode()
    held["manifest.json"] = text.replace('"path": "redis.conf"', '"path": "/tmp/redis.conf"').encode()
    assert held["manifest.json"] != text.encode()


CHANGES = {
    "a_row_more": (a_row_more, "are not what its manifest says"),
    "a_member_less": (a_member_less, "are not what its manifest says"),
    "a_member_more": (a_member_more, "where none should"),
    "no_manifest": (no_manifest, "it has no manifest"),
    "a_path_that_leads_out": (a_path_that_leads_out, "leads out of its folder"),
    "an_absolute_path": (an_absolute_path, "leads out of its folder"),
    "somebody_elses": (manifest_with(format="tar-of-mine"), "its manifest is wrong at format"),
    "a_newer_form": (manifest_with(version=2, more="things"), "made by a newer HOWL"),
    "an_older_form": (manifest_with(version=0), "its manifest is wrong at version"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_archive_that_was_changed_is_refused_and_nothing_restored(
    name: str, spoilt: Path, empty: Settings, tmp_path: Path
) -> None:
    change, reason = CHANGES[name]
    with pytest.raises(ArchiveRefused, match=reason):
        restore(empty, rewritten(spoilt, change), tmp_path / "new" / "howl-server", quietly)
    assert_untouched(empty, tmp_path)


def test_an_archive_of_unchanged_members_is_accepted(made: Path, empty: Settings, tmp_path: Path) -> None:
    restore(empty, rewritten(made, lambda _: None), tmp_path / "new" / "howl-server", quietly)
    assert (tmp_path / "new" / "howl-server" / "redis.conf").exists()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 1.0])
def test_an_archive_with_one_wrong_byte_is_refused(place: float, spoilt: Path, empty: Settings, tmp_path: Path) -> None:
    data = bytearray(spoilt.read_bytes())
    data[min(int(len(data) * place), len(data) - 5)] ^= 0x10
    spoilt.write_bytes(data)
    with pytest.raises(ArchiveRefused, match="damaged"):
        restore(empty, spoilt, tmp_path / "new" / "howl-server", quietly)
    assert_untouched(empty, tmp_path)


@pytest.mark.parametrize("left", [0, 100, -1000, -1])
def test_an_archive_cut_short_is_refused(left: int, spoilt: Path, empty: Settings, tmp_path: Path) -> None:
    spoilt.write_bytes(spoilt.read_bytes()[:left])
    with pytest.raises(ArchiveRefused, match="damaged"):
        restore(empty, spoilt, tmp_path / "new" / "howl-server", quietly)
    assert_untouched(empty, tmp_path)


@pytest.mark.parametrize("name", ["absent", "text", "gzip", "folder"])
def test_what_is_no_archive_is_refused(name: str, empty: Settings, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive\n" * 1000)
    (tmp_path / "gzip").write_bytes(gzip.compress(b"no archive\n" * 1000))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveRefused):
        restore(empty, tmp_path / name, None, quietly)


def test_an_archive_of_an_unknown_migration_is_refused(spoilt: Path, empty: Settings, tmp_path: Path) -> None:
    def change(held: dict[str, bytes]) -> None:
        manifest = json.loads(held["manifest.json"])
        manifest["record"]["revision"] = "9999"
        held["manifest.json"] = json.dumps(manifest).encode()

    with pytest.raises(ArchiveRefused, match="migration 9999, which this HOWL does not know"):
        restore(empty, rewritten(spoilt, change), tmp_path / "new" / "howl-server", quietly)
    assert_untouched(empty, tmp_path)


def assert_untouched(empty: Settings, tmp_path: Path) -> None:
    with psycopg.connect(empty.database()) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)
    assert not backup_content.buckets(empty)
    assert not (tmp_path / "new").exists()


# --- targets that are not empty ------------------------------------------------------------------------------------


def test_a_database_with_rows_is_refused_and_stays_as_it_is(made: Path, full: Settings, empty: Settings) -> None:
    before = backup_content.all_rows(full)
    with pytest.raises(RestoreRefused, match=r"has rows already .*tasks.*make an empty database"):
        restore(empty.model_copy(update={"database_url": full.database_url}), made, None, quietly)
    assert backup_content.all_rows(full) == before


def test_a_database_that_was_migrated_and_not_used_is_empty(
    made: Path, full: Settings, empty: Settings, tmp_path: Path
) -> None:
    migrate.upgrade(empty.database())
    restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    assert backup_content.all_rows(empty) == backup_content.all_rows(full)


def test_a_database_with_tables_of_somebody_elses_is_refused(made: Path, empty: Settings) -> None:
    with psycopg.connect(empty.database()) as connection:
        connection.execute("CREATE TABLE tasks (mine text)")
    with pytest.raises(RestoreRefused, match="tables that HOWL did not make"):
        restore(empty, made, None, quietly)


def test_a_bucket_with_something_else_is_refused_before_anything_is_restored(
    made: Path, empty: Settings, tmp_path: Path
) -> None:
    async def put(stream: Any) -> None:
        store = await stream.create_object_store(f"{empty.subject_prefix}-artifacts", max_bytes=1 << 20)
        await store.put("pieces.bin", b"other pieces")

    backup_content.on_jetstream(empty, put)
    with pytest.raises(RestoreRefused, match="holds something else already"):
        restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    assert not (tmp_path / "new").exists()


def test_another_configuration_is_not_written_over(made: Path, empty: Settings, folder: Path) -> None:
    (folder / "redis.conf").write_text("changed since")
    with pytest.raises(RestoreRefused, match=r"redis\.conf is there already and says something else"):
        restore(empty, made, folder, quietly)
    assert (folder / "redis.conf").read_text() == "changed since"


def test_another_env_file_is_not_written_over(made: Path, empty: Settings, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_PASSWORD=mine\n")
    with pytest.raises(RestoreRefused, match=r"\.env is there already"):
        restore(empty, made, tmp_path / "howl-server", quietly)
    assert not (tmp_path / "howl-server").exists()


def test_the_configuration_alone_is_restored_without_servers(made: Path, folder: Path, tmp_path: Path) -> None:
    restore_configuration(made, tmp_path / "new" / "howl-server", quietly)
    assert backup_content.all_files(tmp_path / "new" / "howl-server") == backup_content.all_files(folder)


def test_an_interrupted_restore_is_repeated_to_its_end(
    made: Path, full: Settings, empty: Settings, tmp_path: Path
) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        if (step, done) in (("objects", 2), ("table tasks", 3)):
            raise KeyboardInterrupt

    def stop_late(step: str, done: int, total: int | None) -> None:
        if (step, done) == ("table task_events", 50):
            raise KeyboardInterrupt

    for interruption in (stop, stop_late):
        with pytest.raises(KeyboardInterrupt):
            restore(empty, made, tmp_path / "new" / "howl-server", interruption)
    restore(empty, made, tmp_path / "new" / "howl-server", quietly)
    assert backup_content.all_rows(empty) == backup_content.all_rows(full)
    assert backup_content.all_objects(empty) == backup_content.all_objects(full)


# --- the commands --------------------------------------------------------------------------------------------------


def test_the_commands_say_what_they_did(
    full: Settings, empty: Settings, env: dict[str, str], start: Callable[..., Process], folder: Path, tmp_path: Path
) -> None:
    backup = start("backup", str(tmp_path / "b.tar.gz"), "--config", str(folder), "--json", env=env)
    assert backup.wait() == 0, backup.output
    told = json.loads(backup.output)
    addresses = {"HOWL_NATS_URL": empty.nats(), "HOWL_DATABASE_URL": empty.database()}
    options = ("--config", str(tmp_path / "new" / "howl-server"), "--json")
    back = start("restore", str(tmp_path / "b.tar.gz"), *options, env=env | addresses)
    assert back.wait() == 0, back.output
    restored = json.loads(back.output)
    counts = ("rows", "objects", "configuration_files")
    assert [restored[name] for name in counts] == [told[name] for name in counts] == [59, 3, 5]


def test_a_refusal_is_one_sentence_and_status_1(
    made: Path, env: dict[str, str], start: Callable[..., Process], folder: Path
) -> None:
    process = start("restore", str(made), "--config", str(folder), env=env)
    assert process.wait() == 1
    assert process.output.startswith("Error: The database has rows already")
    assert process.output.count("\n") == 1
