"""HOWL_JOIN and HOWL_CA_FILE: one string for all, explicit settings first, clear words for what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import pytest

from howl.config import load_settings
from howl.errors import SettingsError
from howl.join import Join, decode, encode
from howl.provision.authority import make_authority

SECRET = "pa:ss/word@1"
JOIN = Join(
    host="my.server", redis_port=6380, nats_port=4223, user="worker", password=SECRET, key_prefix="h:",
    subject_prefix="hh", queues=("web", "screens"), ca=make_authority("my.server").certificate,
)  # fmt: skip
STRING = encode(JOIN)


@pytest.fixture(autouse=True)
def settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """These settings are read and never used: they may name any machine."""
    monkeypatch.delenv("HOWL_LOOPBACK_ONLY")


def test_a_join_string_is_read_as_it_was_written():
    assert decode(STRING) == JOIN


def test_a_join_string_survives_the_line_breaks_of_a_mail():
    assert decode("\n ".join(STRING[at : at + 60] for at in range(0, len(STRING), 60))) == JOIN


def test_a_join_string_is_one_word_that_no_shell_minds():
    assert set(STRING) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "not a join string"),
        ("redis://:password@host:6379/0", "not a join string"),
        (STRING[:-1], "cut short"),
        (STRING[: len(STRING) // 2], "cut short"),
        (STRING[:30] + ("A" if STRING[30] != "A" else "B") + STRING[31:], "cut short or changed"),
        (STRING.replace("howl-join.1.", "howl-join.1.é"), "cut short or changed"),
        (STRING.replace("howl-join.1.", "howl-join.0."), "another version"),
        (STRING.replace("howl-join.1.", "howl-join.12."), "another version"),
    ],
)
def test_a_wrong_join_string_is_refused_in_one_line_that_says_what_to_do(text: str, words: str):
    with pytest.raises(SettingsError) as caught:
        load_settings(join=text)
    message = caught.value.message
    assert words in message
    assert "howl init join" in message
    assert "\n" not in message
    assert text not in message
    assert SECRET not in message


def test_a_join_string_tells_all_that_a_worker_needs():
    settings = load_settings(join=STRING)
    assert settings.redis_url == "rediss://worker:pa%3Ass%2Fword%401@my.server:6380/0"
    assert settings.nats_url == "tls://worker:pa%3Ass%2Fword%401@my.server:4223"
    assert settings.database_url is None
    assert (settings.key_prefix, settings.subject_prefix) == ("h:", "hh")
    assert settings.queues == ("web", "screens")
    assert settings.ca == JOIN.ca


def test_prefixes_and_queues_that_are_said_explicitly_win_over_the_join_string():
    settings = load_settings(join=STRING, key_prefix="mine:", subject_prefix="mine", queues="celery")
    assert (settings.key_prefix, settings.subject_prefix, settings.queues) == ("mine:", "mine", ("celery",))


#: What would send a join string's password elsewhere, or check less, by variable.
ROUND = {
    "HOWL_TLS": "0",
    "HOWL_CA_FILE": "/etc/ssl/cert.pem",
    "MANAGER_HOST": "10.0.0.1",
    "REDIS_HOST": "10.0.0.1",
    "NATS_HOST": "10.0.0.1",
    "HOWL_REDIS_HOST": "127.0.0.1",
    "HOWL_MANAGER_HOST": "my.server.evil",
    "REDIS_PORT": "6379",
    "NATS_PORT": "4222",
    "REDIS_USER": "default",
    "NATS_USER": "howl",
    "REDIS_PASSWORD": "another",
    "NATS_PASSWORD": "another",
    "HOWL_REDIS_URL": "redis://10.0.0.1:6379/0",
    "HOWL_NATS_URL": "nats://10.0.0.1:4222",
}


@pytest.mark.parametrize("where", ["environment", ".env"])
@pytest.mark.parametrize("name", ROUND)
def test_nothing_goes_round_a_join_string(name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOWL_JOIN", STRING)
    if where == ".env":
        (tmp_path / ".env").write_text(f"{name}={ROUND[name]}\n")
        monkeypatch.setenv("HOWL_ENV_FILE", str(tmp_path / ".env"))
    else:
        monkeypatch.setenv(name, ROUND[name])
    unset = name if name in ("HOWL_TLS", "HOWL_CA_FILE") or name.endswith("URL") else name.removeprefix("HOWL_")
    with pytest.raises(SettingsError, match=rf"HOWL_JOIN alone says .*: unset {unset}, in the environment and in .env"):
        load_settings()


def test_a_setting_that_says_what_the_join_string_says_does_no_harm():
    url = "rediss://worker:pa%3Ass%2Fword%401@my.server:6380/0"
    settings = load_settings(join=STRING, redis_url=url, manager_host="my.server", nats_port=4223, tls=True)
    assert (settings.redis_url, settings.nats_url) == (url, "tls://worker:pa%3Ass%2Fword%401@my.server:4223")


def test_a_join_string_and_somebody_else_s_password_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("REDIS_PASSWORD", "the owner's")
    (tmp_path / ".env").write_text(f"HOWL_JOIN={STRING}\n")
    monkeypatch.setenv("HOWL_ENV_FILE", str(tmp_path / ".env"))
    with pytest.raises(SettingsError, match="unset REDIS_PASSWORD"):
        load_settings()


def test_the_environment_may_say_where_a_tunnel_ends_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"HOWL_JOIN": STRING, "MANAGER_HOST": "127.0.0.1", "REDIS_PORT": "16380"}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.redis_url == "rediss://worker:pa%3Ass%2Fword%401@127.0.0.1:16380/0"
    assert settings.nats_url == "tls://worker:pa%3Ass%2Fword%401@127.0.0.1:4223"
    assert settings.ca == JOIN.ca


def test_a_file_may_not_say_so_nor_can_a_tunnel_s_end_be_told_by_a_public_authority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".env").write_text("MANAGER_HOST=127.0.0.1\nREDIS_PORT=16380\n")
    monkeypatch.setenv("HOWL_ENV_FILE", str(tmp_path / ".env"))
    with pytest.raises(SettingsError, match="unset MANAGER_HOST, REDIS_PORT"):
        load_settings(join=STRING)
    monkeypatch.setenv("MANAGER_HOST", "127.0.0.1")
    with pytest.raises(SettingsError, match="unset REDIS_PORT"):
        load_settings(join=STRING)
    with pytest.raises(SettingsError, match="unset MANAGER_HOST, REDIS_PORT"):
        load_settings(join=encode(replace(JOIN, ca="")))


def test_a_secret_does_not_show_where_settings_are_printed():
    shown = repr(load_settings(join=STRING))
    assert SECRET not in shown
    assert STRING not in shown


def test_a_host_is_spoken_to_with_tls_when_its_authority_is_known(tmp_path: Path):
    (tmp_path / "ca.crt").write_text(JOIN.ca)
    settings = load_settings(manager_host="my.server", ca_file=tmp_path / "ca.crt")
    assert settings.redis().startswith("rediss://")
    assert settings.nats().startswith("tls://")
    assert settings.ca == JOIN.ca


def test_a_host_is_spoken_to_with_tls_when_told_so():
    settings = load_settings(manager_host="my.server", tls=True)
    assert (settings.redis()[:9], settings.nats()[:6], settings.ca) == ("rediss://", "tls://", None)


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_without_an_authority_is_named(tmp_path: Path, content: str | None):
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"HOWL_CA_FILE: .*ca\.crt cannot be used"):
        load_settings(manager_host="my.server", ca_file=file)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false", "ssl_cert_reqs=required"])
def test_an_address_cannot_say_how_certificates_are_checked(option: str):
    with pytest.raises(SettingsError, match="certificates are always checked"):
        load_settings(redis_url=f"rediss://my.server:6379/0?{option}")
