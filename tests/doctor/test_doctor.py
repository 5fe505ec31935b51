"""`howl doctor` against real servers: everything right, and each thing wrong in turn."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from nats.js.api import StreamConfig
from sqlalchemy.orm import Session

from howl.artifacts import store
from howl.config import Settings
from howl.connections.nats import Connection
from howl.connections.redis import redis_client
from howl.doctor.examine import run
from howl.doctor.finding import Finding, Verdict
from howl.doctor.nats import judge_payload, judge_room
from howl.doctor.network import judge_expiry
from howl.doctor.redis import judge_clocks, judge_round_trip, judge_silence
from howl.embedded.isolation import clean_environment
from howl.join import Join, encode
from howl.models import Worker
from howl.server import migrate
from howl.submission import TaskRequest, submit
from tests.cli.test_cli import modules_after
from tests.helpers import secured_anyhow
from tests.helpers.support import Process

pytestmark = pytest.mark.servers

OK, WARNING, FAILURE = Verdict
WAY = ["tcp", "login", "round trip"]
#: Of a name no resolver needs to be asked: it is too long to be one.
UNKNOWN = f"{'x' * 64}.example"


def verdicts(findings: list[Finding], server: str) -> dict[str, Verdict]:
    return {finding.check: finding.verdict for finding in findings if finding.server == server}


def failures(findings: list[Finding], server: str) -> list[tuple[str, str]]:
    """What failed at a server: which check, and what is told, advice included."""
    return [
        (each.check, f"{each.said}: {each.advice}")
        for each in findings
        if each.server == server and each.verdict is FAILURE
    ]


def only_failure(findings: list[Finding], server: str) -> tuple[str, str]:
    found = failures(findings, server)
    assert len(found) == 1, found
    return found[0]


# --- everything right ----------------------------------------------------------------------------------------------


def test_a_server_with_all_it_needs_is_well(settings: Settings, server: Process) -> None:
    findings = run(settings)
    assert verdicts(findings, "redis") == dict.fromkeys([*WAY, "clock", "rights", "server", "memory", "version"], OK)
    assert verdicts(findings, "nats") == dict.fromkeys([*WAY, "rights", "messages", "jetstream", "version"], OK)
    assert verdicts(findings, "postgresql") == dict.fromkeys(
        [*WAY, "rights", "migrations", "chords", "queues", "version"], OK
    )


def test_a_server_that_nobody_runs_is_told(settings: Settings) -> None:
    assert only_failure(run(settings), "redis") == (
        "server",
        "nobody runs `howl server`: nobody has asked for outcomes ever: start it, or see its log: without it nothing "
        "is recorded, and nothing of a dead worker comes back",
    )
    assert [judge_silence(seconds).verdict for seconds in (0.1, 9.9, 10.1)] == [OK, OK, FAILURE]


def test_queues_that_nobody_serves_are_told_whoever_published(
    settings: Settings, session: Session, app: Celery
) -> None:
    submit(TaskRequest(name="tests.noop", queue="submitted"), session, app)
    app.send_task("tests.noop", queue="published")
    check, told = only_failure(run(settings), "postgresql")
    assert check == "queues"
    assert "no active worker takes any, in published, submitted: start one" in told
    by_themselves = settings.model_copy(update={"burst_when": "waiting > 100"})
    assert verdicts(run(by_themselves), "postgresql")["queues"] is WARNING
    session.add(Worker(worker_id="w1", queues=["published", "submitted"]))
    session.commit()
    assert verdicts(run(settings), "postgresql")["queues"] is OK


def test_a_burst_machine_with_one_secret_is_well(tmp_path: Path, start: Callable[..., Process]) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        join = Join(
            host="localhost", redis_port=made.redis_port, nats_port=made.nats_port, user="worker",
            password=secured_anyhow.PASSWORD, key_prefix="howl:", subject_prefix="howl",
            ca=(tmp_path / "ca.crt").read_text(),
        )  # fmt: skip
        process = start("doctor", "--as", "worker", "--json", env=clean_environment(HOWL_JOIN=encode(join)))
        assert process.wait() == 0, process.output
    told = json.loads(process.output)
    checks = {(each["server"], each["check"]) for each in told["findings"] if each["verdict"] == "ok"}
    assert told["well"]
    assert len(checks) == len(told["findings"])
    wanted = ["dns", "tcp", "tls", "login", "round trip", "rights", "limits", "version"]
    alone = {("here", "version"), ("redis", "clock"), ("nats", "messages")}
    assert checks == alone | {*((s, c) for s in ("redis", "nats") for c in wanted)}


def test_the_server_s_own_credential_over_tls_is_well(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        findings = run(made.settings("server"))
    assert [finding.check for finding in findings if finding.verdict is not OK] == ["server"], "nobody runs it here"


def test_a_worker_s_doctor_loads_nothing_that_reads_the_database(settings: Settings) -> None:
    asked = "from click.testing import CliRunner; from howl.cli import main; CliRunner().invoke(main, {!r})"
    env = clean_environment(HOWL_REDIS_URL=settings.redis(), HOWL_NATS_URL=settings.nats())
    loaded = modules_after(asked.format(["doctor", "--as", "worker"]), env)
    assert {"redis", "nats"} <= loaded
    assert not loaded & {"sqlalchemy", "psycopg", "alembic", "mcp", "flower"}


# --- the way -------------------------------------------------------------------------------------------------------


def elsewhere(settings: Settings, host: str, port: int, tls: bool = False) -> Settings:
    """All three servers at one place."""
    login = f"howl:secret-word@{host}:{port}"
    urls = {
        "redis_url": f"{'rediss' if tls else 'redis'}://{login}/0", "nats_url": f"{'tls' if tls else 'nats'}://{login}",
        "database_url": f"postgresql://{login}/mcp_manager",
    }  # fmt: skip
    return settings.model_copy(update=urls)


@pytest.mark.parametrize("server", ["redis", "nats", "postgresql"])
def test_a_host_that_is_unknown_is_told_and_nothing_more_asked(server: str, settings: Settings) -> None:
    findings = run(elsewhere(settings, UNKNOWN, 6379))
    check, told = only_failure(findings, server)
    assert check == "dns"
    assert "check the spelling of the address" in told
    assert verdicts(findings, server) == {"dns": FAILURE}


@pytest.mark.parametrize("server", ["redis", "nats", "postgresql"])
def test_a_port_that_is_closed_is_told(server: str, settings: Settings) -> None:
    check, told = only_failure(run(elsewhere(settings, "127.0.0.1", 9)), server)
    assert check == "tcp"
    assert "refused" in told.lower() or "Connect call failed" in told


def silent(connection: socket.socket) -> None:
    """Accepts, and never answers."""


def hangs_up(connection: socket.socket) -> None:
    connection.close()


def talks_nonsense(connection: socket.socket) -> None:
    connection.sendall(os.urandom(10_000))


def talks_like_a_web_server(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: scanner\x1b[31m\r\n\r\n" + b"x" * 100_000)


@contextmanager
def stranger(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Somebody else's server on a port of this machine."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    held.append(connection)
                    answer(connection)
                except OSError:
                    if listener.fileno() < 0:
                        return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in held:
        connection.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("answer", [silent, hangs_up, talks_nonsense, talks_like_a_web_server])
def test_a_stranger_on_the_port_is_told_in_time_whatever_he_says(
    answer: Callable[[socket.socket], None], tls: bool, settings: Settings
) -> None:
    run(settings)  # what is loaded when first used is no server's delay
    with stranger(answer) as port:
        began = time.monotonic()
        findings = run(elsewhere(settings, "127.0.0.1", port, tls))
        assert time.monotonic() - began < 5
    for server in ("redis", "nats"):
        assert only_failure(findings, server)[0] == ("tls" if tls else "login")
    assert only_failure(findings, "postgresql")[0] == "login"
    assert not [each for each in findings if "secret-word" in each.said or len(each.said) > 200]


def test_a_server_that_never_answers_holds_a_burst_machine_up_for_less_than_five_seconds(
    start: Callable[..., Process], env: dict[str, str]
) -> None:
    with stranger(silent) as port:
        place = {"HOWL_REDIS_URL": f"redis://127.0.0.1:{port}/0", "HOWL_NATS_URL": f"nats://127.0.0.1:{port}"}
        process = start("doctor", "--as", "worker", "--json", env=env | place)
        assert process.wait() == 1
    told = json.loads(process.output)
    assert told["seconds"] < 5
    assert [each["check"] for each in told["findings"] if each["verdict"] == "failed"] == ["login", "login"]


# --- certificates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "days", "ca", "told"),
    [
        (("127.0.0.1",), -1, "ca.crt", "expired: run `howl init` on the server"),
        (
            ("other.example",),
            90,
            "ca.crt",
            "for other names than this address: use the one given to `howl init --host`",
        ),
        (("127.0.0.1",), 90, "other-ca.crt", "not signed by the authority known here: store a new HOWL_JOIN"),
    ],
    ids=["expired", "wrong host", "other authority"],
)
def test_a_bad_certificate_is_told_and_no_password_sent(
    names: tuple[str, ...], days: float, ca: str, told: str, tmp_path: Path
) -> None:
    with secured_anyhow.serve(tmp_path, *names, days=days) as made:
        findings = run(made.settings("worker", ca=ca), as_worker=True)
    for server in ("redis", "nats"):
        check, text = only_failure(findings, server)
        assert check == "tls"
        assert told in text
        assert "login" not in verdicts(findings, server)


def test_a_certificate_that_expires_soon_is_a_warning(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path, days=10) as made:
        findings = run(made.settings("worker"), as_worker=True)
    for server in ("redis", "nats"):
        assert verdicts(findings, server)["tls"] is WARNING
        assert failures(findings, server) == []


# --- logins and rights ---------------------------------------------------------------------------------------------


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        findings = run(made.settings("worker", "wrong-password"), as_worker=True)
    for server in ("redis", "nats"):
        check, told = only_failure(findings, server)
        assert check == "login"
        assert "user name or password is wrong" in told
    assert "wrong-password" not in str(findings)


@pytest.mark.parametrize("wrong", ["wrong@", "howl:wrong@"])
def test_a_wrong_password_of_postgresql_is_told(wrong: str, settings: Settings) -> None:
    place = settings.database().rpartition("@")[2]
    findings = run(settings.model_copy(update={"database_url": f"postgresql://{wrong}{place}"}))
    assert only_failure(findings, "postgresql")[0] == "login"


def test_a_burst_machine_that_could_command_the_server_fails(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path, host=secured_anyhow.ELSEWHERE) as made:
        findings = run(made.settings("server"), as_worker=True)
    assert only_failure(findings, "nats") == (
        "limits",
        "may do too much: hearing howl.events.>, hearing howl.inbox.>: give workers a credential of their own: "
        "`howl init join`",
    )


def test_a_credential_that_may_everything_fails_elsewhere(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path, host=secured_anyhow.ELSEWHERE) as made:
        findings = run(made.settings("admin"), as_worker=True)
    check, told = only_failure(findings, "redis")
    assert check == "limits"
    assert "CONFIG GET, ACL LIST, CLIENT LIST, reading other keys" in told
    assert only_failure(findings, "nats")[0] == "limits"


def test_a_credential_that_may_everything_is_a_warning_on_one_s_own_machine(settings: Settings) -> None:
    findings = run(settings, as_worker=True)
    assert [verdicts(findings, server)["limits"] for server in ("redis", "nats")] == [WARNING, WARNING]


def test_a_worker_that_is_told_where_postgresql_is_fails(settings: Settings) -> None:
    told = settings.model_copy(update={"database_url": f"postgresql://howl:secret-word@{UNKNOWN}/mcp_manager"})
    findings = run(told, as_worker=True)
    assert only_failure(findings, "postgresql")[0] == "limits"
    assert "secret-word" not in str(findings)


def test_a_queue_that_is_not_granted_is_told(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        strange = made.settings("worker").model_copy(update={"key_prefix": "other:", "subject_prefix": "other"})
        findings = run(strange, as_worker=True)
    assert only_failure(findings, "redis")[1].startswith("the queue celery is not granted")
    assert only_failure(findings, "nats")[1].startswith("may not publish other.events")


def test_a_credential_of_before_the_scripts_asked_for_sizes_is_told_how_to_get_the_right(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        with redis_client(made.settings("admin")) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "-getrange")
        findings = run(made.settings("worker"), as_worker=True)
    assert only_failure(findings, "redis") == (
        "rights",
        "scripts are not granted: bring Redis's users up to date: run `howl init` on the server",
    )


def test_a_credential_of_before_there_were_files_is_told_how_to_get_the_right(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path) as made:
        findings = run(made.settings("older"), as_worker=True)
    assert only_failure(findings, "nats") == (
        "rights",
        "may not publish howl.events: bring NATS's users up to date: run `howl init` on the server",
    )


def test_looking_whether_files_may_be_left_leaves_none(settings: Settings) -> None:
    bucket = store.bucket(settings.subject_prefix)
    kept = asyncio.run(_kept_after(settings, bucket, lambda: run(settings, as_worker=True)))
    assert kept == 0


async def _kept_after(settings: Settings, bucket: str, look: Callable[[], object]) -> int:
    """Messages in the streams of files and of events afterwards."""
    client = await Connection().open(settings, "test")
    try:
        stream = client.jetstream()
        names = (store.stream_name(bucket), f"{settings.subject_prefix}-events")
        for name, subjects in zip(names, (f"$O.{bucket}.>", f"{settings.subject_prefix}.events.>"), strict=True):
            await stream.add_stream(StreamConfig(name=name, subjects=[subjects]))
        await asyncio.to_thread(look)
        return sum([(await stream.stream_info(name)).state.messages for name in names])
    finally:
        for name in names:
            await stream.delete_stream(name)
        await client.close()


# --- what the server needs beside ----------------------------------------------------------------------------------


def test_nats_without_jetstream_is_told(tmp_path: Path) -> None:
    with secured_anyhow.serve(tmp_path, jetstream=False) as made:
        findings = run(made.settings("server"))
    assert only_failure(findings, "nats")[0] == "jetstream"


def test_a_database_that_was_not_migrated_is_told(settings: Settings) -> None:
    with psycopg.connect(settings.database()) as connection:
        connection.execute("DROP TABLE alembic_version")
    assert only_failure(run(settings), "postgresql") == (
        "migrations",
        f"at migration none, and this HOWL needs {migrate.head()}: run `howl migrate`",
    )


def test_a_database_that_a_newer_howl_migrated_is_told(settings: Settings) -> None:
    with psycopg.connect(settings.database()) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "update HOWL" in only_failure(run(settings), "postgresql")[1]


def test_what_nobody_configured_is_told() -> None:
    nothing = Settings(_env_file=None, home=Path("/nowhere"))
    findings = run(nothing, as_worker=True)
    assert [each.check for each in findings if each.verdict is FAILURE] == ["settings", "settings"]


def test_a_month_without_minutes_left_is_a_warning(settings: Settings) -> None:
    configured = settings.model_copy(update={"github_repository": "owner/name", "budget_minutes": 90})
    assert verdicts(run(configured), "postgresql")["budget"] is OK
    with psycopg.connect(settings.database()) as connection:
        connection.execute(
            "INSERT INTO bursts (burst_id, origin, num_workers, runtime_minutes, minutes_planned) "
            "VALUES ('b', 'github-actions', 3, 30, 90)"
        )
    assert verdicts(run(configured), "postgresql")["budget"] is WARNING


def test_a_credential_that_has_much_recorded_and_a_chord_that_expired_are_told(settings: Settings) -> None:
    limited = settings.model_copy(update={"record_limit": 1 << 20})
    with psycopg.connect(settings.database()) as connection:
        connection.execute("INSERT INTO record_usage (redis_user, level) VALUES ('burst', 1000), ('thief', 10 << 20)")
        connection.execute("UPDATE record_usage SET refused = 1234 WHERE redis_user = 'thief'")
    found = {finding.check: finding for finding in run(limited) if finding.server == "postgresql"}
    assert found["record"].verdict is WARNING
    assert found["record"].said.startswith("thief uses 1000% of the 1 MB an hour that a credential may have recorded")
    assert found["record"].said.endswith("; 1,234 of its entries were refused")
    assert found["chords"].said == "0 wait for 0 parts"
    with psycopg.connect(settings.database()) as connection:
        connection.execute("DELETE FROM record_usage WHERE redis_user = 'thief'")
        connection.execute(
            "INSERT INTO chords (group_id, parts, header, body, body_submitted_at, expired) "
            "VALUES ('g', '{}', '', '', now(), true)"
        )
    found = {finding.check: finding for finding in run(limited) if finding.server == "postgresql"}
    assert (found["record"].verdict, found["chords"].verdict) == (OK, WARNING)
    assert found["chords"].said == "0 wait for 0 parts; 1 expired within a week"


# --- judgements, where the thing itself cannot be brought about ----------------------------------------------------


def test_clocks_are_judged_by_what_is_beyond_doubt() -> None:
    judged = {ahead: judge_clocks(ahead, 0.5).verdict for ahead in (0.0, 2.4, -2.6, 30.4, -30.6, 3600.0)}
    assert judged == {0.0: OK, 2.4: OK, -2.6: WARNING, 30.4: WARNING, -30.6: FAILURE, 3600.0: FAILURE}


def test_a_long_round_trip_is_a_warning() -> None:
    assert [judge_round_trip(seconds, 7).verdict for seconds in (0.05, 0.31)] == [OK, WARNING]


def test_a_nearly_full_jetstream_is_a_warning() -> None:
    assert [judge_room(used, 100, {}).verdict for used in (0, 90, 91, 100)] == [OK, OK, WARNING, WARNING]
    assert [judge_room(0, -1, {"OBJ_howl-artifacts": share}).verdict for share in (0.9, 0.91)] == [OK, WARNING]


def test_a_certificate_s_last_days_are_a_warning() -> None:
    ends = [datetime.now(UTC) + timedelta(days=days) for days in (0.5, 20.5, 22.5)]
    assert [judge_expiry(end, "TLSv1.3").verdict for end in ends] == [WARNING, WARNING, OK]


# --- the command ---------------------------------------------------------------------------------------------------


def test_every_finding_is_a_line_with_a_mark_and_a_word(
    start: Callable[..., Process], env: dict[str, str], settings: Settings
) -> None:
    with psycopg.connect(settings.database()) as connection:
        connection.execute("DROP TABLE alembic_version")
    process = start("doctor", env=env)
    assert process.wait() == 1
    lines = process.output.splitlines()
    assert {line[:2] + line[2:].split()[0] for line in lines} == {"✓ ok", "✗ failed"}
    failed = [line.split()[2:4] for line in lines if line.startswith("✗")]
    assert failed == [["redis", "server"], ["postgresql", "migrations"]]  # no `howl server` runs here


def test_a_wrong_setting_is_a_finding_too(start: Callable[..., Process]) -> None:
    process = start("doctor", "--as", "worker", "--json", env=clean_environment(HOWL_JOIN="howl-join.1.cut"))
    assert process.wait() == 1
    told: dict[str, Any] = json.loads(process.output)
    assert [(each["check"], "cut short" in each["advice"]) for each in told["findings"]] == [("settings", True)]


def test_a_nats_that_takes_no_whole_piece_of_a_file_is_told():
    assert [judge_payload(most).verdict for most in (1 << 20, 512 << 10)] == [OK, FAILURE]
    assert judge_payload(512 << 10).said == "messages of up to 524,288 bytes; files need 1,025,024"
