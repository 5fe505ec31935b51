"""web.fetch, called directly, against a real web server on loopback."""

import hashlib
import ipaddress
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from howl.errors import AddressRefused, FetchFailed, InvalidRequest
from howl.worker.task import time_limits
from tests.helpers.site import PAGE, Site
from tests.helpers.support import PATIENCE
from workers import addresses
from workers.chromium import page
from workers.web import fetch

SELF_SIGNED = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
    "-subj /CN=pages.test -addext subjectAltName=DNS:pages.test"
)


@pytest.fixture
def site(owner_says: Callable[..., None]) -> Iterator[Site]:
    """A site that this worker may fetch from, because its owner allows private addresses."""
    owner_says(HOWL_WEB_ALLOW_PRIVATE="1")
    with Site("127.0.0.1") as running:
        yield running


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that this machine resolves for the test, with one list of addresses for each time it is asked."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known:
            return real(host, port, *args, **kwargs)
        if not known[name]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [answer for address in known[name].pop(0) for answer in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_a_page_comes_with_status_headers_title_text_and_digest(site: Site):
    found = fetch(site.url("/page"))
    assert found["url"] == site.url("/page")
    assert found["status"] == 200
    assert found["headers"]["content-type"] == "text/html; charset=utf-8"
    assert found["title"] == "A & B é"
    assert found["excerpt"] == "Hello wide <world>"
    assert found["sha256"] == hashlib.sha256(PAGE.encode()).hexdigest()
    assert found["size"] == len(PAGE.encode())
    assert not found["truncated"]
    assert 0 < found["duration"] < 20
    assert json.loads(json.dumps(found)) == found


def test_a_packed_page_is_unpacked(site: Site):
    assert fetch(site.url("/packed"))["sha256"] == hashlib.sha256(PAGE.encode()).hexdigest()


def test_an_error_status_is_an_answer(site: Site):
    assert fetch(site.url("/missing"))["status"] == 404


def test_a_redirect_is_followed_and_the_final_url_returned(site: Site):
    found = fetch(site.url("/hop?to=/page"))
    assert (found["url"], found["title"]) == (site.url("/page"), "A & B é")


def test_text_is_read_in_the_charset_it_is_written_in(site: Site):
    assert fetch(site.url("/latin"))["excerpt"] == "Café"


def test_text_in_no_known_charset_is_shown_with_replacement_characters(site: Site):
    assert fetch(site.url("/broken"))["excerpt"] == "a\ufffd\0b"


def test_an_endless_body_is_read_up_to_the_limit(site: Site):
    found = fetch(site.url("/endless"), limit=200_000)
    assert (found["size"], found["truncated"]) == (200_000, True)
    assert found["sha256"] == hashlib.sha256(bytes(200_000)).hexdigest()


def test_a_packed_bomb_is_unpacked_up_to_the_limit(site: Site):
    found = fetch(site.url("/bomb"), limit=300_000)
    assert (found["size"], found["truncated"]) == (300_000, True)


@pytest.mark.parametrize("path", ["/trickle", "/trickling_headers", "/dawdle"])
def test_a_server_that_trickles_does_not_hold_a_task_beyond_its_timeout(site: Site, path: str):
    started = time.monotonic()
    with pytest.raises(FetchFailed, match=r"not there after 0\.5 s"):
        fetch(site.url(path), timeout=0.5)
    assert time.monotonic() - started < PATIENCE


def test_a_task_in_a_thread_is_not_held_beyond_its_time_limit(site: Site):
    time_limits.begin(time.monotonic(), soft=0.5, hard=None)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            fetch(site.url("/trickle"), timeout=60)
    finally:
        time_limits.end()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/loop", "still redirecting after 5 redirects"),
        ("/hop?to=file:///etc/passwd", "Only http"),
        ("/hop?to=http://user:secret@127.0.0.1/", "holds credentials"),
        ("/hop?to=http://example.com:port/", "cannot be read"),
        ("/liar", "not the gzip data"),
        ("/unknown", "content encoding 'br'"),
        ("/short", "could not be fetched"),
        ("/hoard", "could not be fetched"),
    ],
)
def test_an_answer_that_leads_nowhere_is_a_clear_error(site: Site, path: str, message: str):
    with pytest.raises((FetchFailed, AddressRefused), match=message) as caught:
        fetch(site.url(path))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "",
        "http://",
        "http:///path",
        "http://user:secret@example.com/",
        "http://user@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com/\0",
        "http://" + "a" * 100_000,
    ],
    ids=lambda url: url[:40],
)
def test_a_url_that_workers_do_not_fetch_is_refused(url: str):
    with pytest.raises(AddressRefused) as caught:
        fetch(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "127\u30020\u30020\u30021",
        "0",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "192.0.0.192",
        "192.0.0.9",
        "198.18.0.1",
        "[100::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[5f00::1]",
        "[::ffff:c000:c0]",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:8.8.8.8]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::808:808]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    ],
)
def test_an_address_that_is_not_public_is_refused(host: str):
    with pytest.raises(AddressRefused, match="HOWL_WEB_ALLOW_PRIVATE=1"):
        fetch(f"http://{host}/", timeout=5)


@pytest.mark.parametrize(
    "host", ["0177.0.0.1", "127.0.0.1.", "%31%32%37.0.0.1", "\uff11\uff12\uff17.0.0.1", "0x7f.1.1.1.1"]
)
def test_a_spelling_that_only_some_programs_take_for_an_address_reaches_none(host: str):
    with pytest.raises((AddressRefused, FetchFailed), match=r"cannot be read|has no address"):
        fetch(f"http://{host}/", timeout=20)


def test_the_cloud_s_own_service_under_a_public_address_is_refused():
    with pytest.raises(AddressRefused, match="HOWL_WEB_ALLOW_PRIVATE=1"):
        fetch("http://168.63.129.16/", timeout=5)


@pytest.mark.parametrize(
    "network",
    [
        # IANA's registries of special-purpose addresses, IPv4 and IPv6, and multicast.
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/31", "192.0.0.192/32",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
        "::/128", "::1/128", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
        "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32",
        "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "3ffe::/16",
        "3fff::/20", "4000::/2", "5f00::/16", "8000::/1", "fc00::/7", "fd00:ec2::254/128", "fe80::/10", "fec0::/10",
        "ff00::/8",
    ],
)  # fmt: skip
def test_no_address_of_a_special_network_is_public_whatever_python_thinks(network: str):
    found = ipaddress.ip_network(network)
    for address in (found[0], found[found.num_addresses // 2], found[-1]):
        assert not addresses.is_public(str(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
        "128.0.0.0", "169.253.255.255", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0",
        "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "203.0.114.0",
        "223.255.255.255", "2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700::1111", "2620:4f:8000::1",
        "3ffd::1", "3fff:1000::1",
    ],
)  # fmt: skip
def test_an_address_of_the_public_internet_is_not_refused(address: str):
    assert addresses.is_public(address)


def test_an_address_of_one_interface_is_not_public():
    assert not addresses.is_public("fe80::1%eth0")
    assert not addresses.is_public("2606:4700::1111%eth0")


def test_a_name_with_one_private_address_among_public_ones_is_refused(names: dict):
    names["mixed.test"] = [["8.8.8.8", "10.0.0.1"]]
    with pytest.raises(AddressRefused):
        fetch("http://mixed.test/", timeout=5)


def test_a_name_without_an_address_is_a_clear_error(names: dict):
    names["nowhere.test"] = []
    with pytest.raises(FetchFailed, match=r"nowhere\.test has no address"):
        fetch("http://nowhere.test/", timeout=5)


def test_a_redirect_to_a_private_address_is_refused_before_anything_connects(monkeypatch: pytest.MonkeyPatch):
    # No public server is at hand: let one loopback address pass for public.
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    with Site("127.0.0.1") as public, Site("127.0.0.2") as private:
        with pytest.raises(AddressRefused):
            fetch(public.url(f"/hop?to={private.url('/page', host='127.0.0.2')}"))
        assert (len(public.seen), private.seen) == (1, [])


def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to(site: Site, names: dict):
    names["rebinding.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    assert fetch(site.url("/page", host="rebinding.test"))["status"] == 200
    assert names["rebinding.test"] == [["127.0.0.2"]]
    assert site.seen == [f"rebinding.test:{site.server_port}"]


def test_the_next_address_of_a_name_is_tried_when_the_first_does_not_answer(site: Site, names: dict):
    names["two.test"] = [["127.0.0.3", "127.0.0.1"]]
    assert fetch(site.url("/page", host="two.test"))["status"] == 200


def test_a_server_that_is_not_there_is_a_clear_error(site: Site):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(FetchFailed, match="could not be fetched"):
        fetch(f"http://127.0.0.1:{port}/")


def test_proxy_variables_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(site.url("/page"))["status"] == 200


@pytest.fixture
def tls_site(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site behind a certificate for pages.test, which this worker trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [*SELF_SIGNED.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return site


def test_tls_is_checked_against_the_name_although_an_address_is_connected_to(tls_site: Site, names: dict):
    names["pages.test"] = [["127.0.0.1"]]
    assert fetch(tls_site.url("/page", host="pages.test", scheme="https"))["status"] == 200


def test_a_certificate_for_another_name_is_refused(tls_site: Site, names: dict):
    names["other.test"] = [["127.0.0.1"]]
    with pytest.raises(FetchFailed, match="certificate"):
        fetch(tls_site.url("/page", host="other.test", scheme="https"))


@pytest.mark.parametrize(
    "arguments", [{"url": 5}, {"limit": 0}, {"limit": 10**9}, {"limit": "1"}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_arguments_that_make_no_request_are_refused(arguments: dict):
    with pytest.raises(InvalidRequest):
        fetch(**{"url": "http://example.com/", **arguments})


@pytest.mark.parametrize(
    "piece",
    ["<a ", "<!--", "<![CDATA[", "<script>", "<script", "</", "<title>", "<a b='", "&", "&#1", "&#" + "9" * 5000 + ";"],
    ids=lambda piece: piece[:12],
)
def test_a_hostile_page_takes_no_noticeable_time_to_read(piece: str):
    markup = piece * (500_000 // len(piece))
    started = time.thread_time()
    page.title(markup)
    page.text(markup)
    assert time.thread_time() - started < 5
