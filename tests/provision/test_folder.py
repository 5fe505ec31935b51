"""What `howl init` leaves on disk: who may read it, and what running it again does to it."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from howl.connections import tls
from howl.errors import ProvisionFailed
from howl.provision import environment, provided_certificate
from howl.provision.authority import Pair, issue, make_authority
from howl.provision.folder import Folder, build
from howl.provision.provided_certificate import read_given
from howl.provision.state import State
from tests.helpers.servers import COMPOSE

HOST = "my.server"
PRIVATE = ("authority/ca.key", "server.json", "../.env")


@pytest.fixture
def made(out: Path) -> Folder:
    return make(out)


def make(out: Path, state: State | None = None, brought: tuple[Pair, str | None] | None = None) -> Folder:
    folder = Folder(out)
    build(folder, state or folder.state() or State(HOST), brought)
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.out.rglob("*")) if path.is_file()}


def names_of(certificate: str) -> set[str]:
    read = x509.load_pem_x509_certificate(certificate.encode())
    stated = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in stated}


def files(folder: Path, pair: Pair) -> tuple[Path, Path]:
    paths = folder / "given.crt", folder / "given.key"
    for path, text in zip(paths, (pair.certificate, pair.key), strict=True):
        path.write_text(text)
    return paths


def test_nobody_else_may_enter_the_folder(made: Folder):
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert (made.path / "authority").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", PRIVATE)
def test_a_file_that_no_container_sees_is_its_owner_s_alone(made: Folder, name: str):
    assert (made.path / name).stat().st_mode & 0o777 == 0o600


def test_no_container_sees_the_authority_s_key_or_all_passwords():
    mounted = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    seen = {volume.split(":")[0] for volume in mounted if volume.startswith("./howl-server")}
    assert seen
    assert not seen & {"./howl-server", "./howl-server/", "./howl-server/authority"}


def test_everything_that_compose_mounts_is_made(made: Folder):
    mounted = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    paths = [made.out / volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert paths
    assert [path for path in paths if not any(path.iterdir())] == []


def test_everything_that_compose_takes_from_the_environment_is_said(made: Folder):
    needed = {"INSIDE_CA", "INSIDE_REDIS", "INSIDE_NATS", "PUBLISH_ADDRESS", *environment.SECRETS}
    assert needed <= environment.read(made.env).keys()


def test_running_it_again_changes_nothing(made: Folder):
    before = contents(made)
    again = make(made.out)
    assert contents(again) == before
    assert set(again.report.values()) == {"kept"}


def test_what_is_missing_is_made_and_the_rest_kept(made: Folder):
    before = contents(made)
    (made.path / "redis" / "users.acl").unlink()
    again = make(made.out)
    assert contents(again) == before
    assert [path.name for path, done in again.report.items() if done != "kept"] == ["users.acl"]


def test_a_person_s_own_lines_and_configuration_stay(made: Folder):
    configuration = made.path / "redis" / "redis.conf"
    configuration.write_text(configuration.read_text().replace("640mb", "2gb"))
    made.env.write_text(
        made.env.read_text().replace("PUBLISH_ADDRESS=0.0.0.0", "PUBLISH_ADDRESS=10.0.0.7") + "MINE=1\n"
    )
    before = contents(made)
    assert contents(make(made.out)) == before


def test_a_secret_somebody_changed_in_env_is_what_the_servers_know_again(made: Folder):
    before = made.env.read_text()
    made.env.write_text(before.replace("REDIS_USER=server", "REDIS_USER=mallory"))
    assert make(made.out).env.read_text() == before


def test_another_server_s_env_is_not_touched(out: Path):
    (out / ".env").write_text("POSTGRES_PASSWORD=precious\n")
    with pytest.raises(ProvisionFailed, match="sets POSTGRES_PASSWORD already"):
        make(out)
    assert (out / ".env").read_text() == "POSTGRES_PASSWORD=precious\n"
    assert not (out / "howl-server").exists()


def test_another_name_needs_another_certificate_and_no_other_secret(made: Folder):
    state, authority = made.existing(), made.ca.read_text()
    passwords = dict(state.passwords)
    state.host = "other.server"
    again = make(made.out, state)
    assert "other.server" in names_of((made.path / "nats" / "server.crt").read_text())
    assert made.ca.read_text() == authority
    assert made.existing().passwords == passwords
    assert environment.read(again.env)["MANAGER_HOST"] == "other.server"


def test_a_certificate_that_is_about_to_expire_is_renewed(made: Folder):
    authority = Pair(*((made.path / "authority" / f"ca.{end}").read_text() for end in ("crt", "key")))
    old = issue(authority, made.existing().names, datetime.timedelta(days=30))
    for server in ("redis", "nats"):
        (made.path / server / "server.crt").write_text(old.certificate)
        (made.path / server / "server.key").write_text(old.key)
    make(made.out)
    renewed = x509.load_pem_x509_certificate((made.path / "redis" / "server.crt").read_bytes())
    assert renewed.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)


def test_the_certificate_is_for_every_name_the_servers_go_by(out: Path):
    state = State("203.0.113.5", also=["my.server"], publish="100.64.0.1")
    folder = make(out, state)
    stated = names_of((folder.path / "redis" / "server.crt").read_text())
    assert stated == {"203.0.113.5", "my.server", "100.64.0.1", "redis", "nats", "localhost", "127.0.0.1", "::1"}


def test_the_authority_can_sign_no_further_authority(made: Folder):
    read = x509.load_pem_x509_certificate(made.ca.read_bytes())
    constraints = read.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


# --- a certificate somebody brings ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Pair:
    return make_authority("somebody")


@pytest.fixture
def ca(tmp_path: Path, authority: Pair) -> Path:
    (tmp_path / "their-ca.crt").write_text(authority.certificate)
    return tmp_path / "their-ca.crt"


def test_a_given_certificate_is_used_and_kept(out: Path, tmp_path: Path, authority: Pair, ca: Path):
    pair = issue(authority, [HOST])
    brought = read_given(*files(tmp_path, pair), ca, HOST)
    folder = make(out, State(HOST, given=True), brought)
    assert (folder.path / "nats" / "server.crt").read_text() == pair.certificate
    assert folder.ca.read_text() == authority.certificate
    assert not (folder.path / "authority" / "ca.key").exists()
    before = contents(folder)
    assert contents(make(out)) == before


def test_between_containers_a_given_certificate_s_own_name_is_used(
    out: Path, tmp_path: Path, authority: Pair, ca: Path
):
    brought = read_given(*files(tmp_path, issue(authority, [HOST])), ca, HOST)
    told = environment.read(make(out, State(HOST, given=True), brought).env)
    assert {told[name] for name in ("REDIS_HOST", "NATS_HOST", "INSIDE_REDIS", "INSIDE_NATS")} == {HOST}


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [(["other.server"], 90, "Hostname mismatch"), ([HOST], -1, "certificate has expired")],
)
def test_a_given_certificate_that_clients_would_refuse_is_refused(
    tmp_path: Path, authority: Pair, ca: Path, names: list[str], days: int, words: str
):
    pair = issue(authority, names, datetime.timedelta(days=days))
    with pytest.raises(ProvisionFailed, match=words):
        read_given(*files(tmp_path, pair), ca, HOST)


def test_a_given_certificate_of_an_unknown_authority_is_refused(tmp_path: Path, authority: Pair):
    with pytest.raises(ProvisionFailed, match="--ca where no public authority signed it"):
        read_given(*files(tmp_path, issue(authority, [HOST])), None, HOST)


def test_a_key_that_is_another_certificate_s_is_refused(tmp_path: Path, authority: Pair, ca: Path):
    pair = Pair(issue(authority, [HOST]).certificate, issue(authority, [HOST]).key)
    with pytest.raises(ProvisionFailed, match="key values mismatch"):
        read_given(*files(tmp_path, pair), ca, HOST)


def test_an_encrypted_key_is_refused(tmp_path: Path, authority: Pair, ca: Path):
    pair = issue(authority, [HOST])
    key = load_pem_private_key(pair.key.encode(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()
    with pytest.raises(ProvisionFailed, match="encrypted"):
        read_given(*files(tmp_path, Pair(pair.certificate, locked)), ca, HOST)


def test_our_certificates_pass_the_strictest_check(authority: Pair):
    client = tls.context(authority.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    provided_certificate._shake_hands(provided_certificate._server(issue(authority, [HOST])), client, HOST)
