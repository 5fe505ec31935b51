"""Bursts on GitHub, whose API is a real HTTP server on loopback."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from howl.bursts import budget, github, github_api, local
from howl.bursts.github_api import GitHub
from howl.bursts.request import BurstRequest
from howl.config import Settings, load_settings
from howl.connections import postgres
from howl.errors import BurstRefused, GitHubFailed, NotConfigured, SettingsError
from howl.models import Burst
from tests.helpers.fake_github import REPOSITORY, TOKEN, FakeGitHub, fake_github
from tests.helpers.support import PATIENCE


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGitHub]:
    """GitHub, and clients whose patience is that of a test."""
    monkeypatch.setattr(github_api, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(github, "FIND_TIMEOUT", 0.3)
    monkeypatch.setattr(github, "FIND_POLL", 0.05)
    with fake_github() as running:
        yield running


@pytest.fixture
def told(settings: Settings, fake: FakeGitHub) -> Settings:
    given = {"github_repository": REPOSITORY, "github_token": SecretStr(TOKEN), "github_api": fake.url}
    return settings.model_copy(update=given | {"loopback_only": True})


def wish(**columns: Any) -> BurstRequest:
    return BurstRequest(**{"workers": 3, "runtime": 1800.0} | columns)


def row(told: Settings) -> Burst:
    with postgres.session(told.database()) as session:
        return session.scalars(select(Burst)).one()


def left(told: Settings) -> float:
    with postgres.session(told.database()) as session:
        return float(budget.look(session, told)["left"])


def refusal(told: Settings) -> str:
    with pytest.raises(GitHubFailed) as caught:
        github.start(wish(), told)
    assert TOKEN not in str(caught.value)
    return caught.value.message


# --- when all is well --------------------------------------------------------------------------------------------


def test_a_burst_is_one_run_whose_id_is_kept(told: Settings, fake: FakeGitHub) -> None:
    request = wish(tags=("a", "b"), queues=("q",), concurrency=2, requested_by="a test")
    started = github.start(request, told)
    (run,) = fake.runs
    assert run["inputs"] == {
        "burst_id": request.burst_id, "runtime_minutes": "30", "num_workers": "3", "tags": "a,b", "queues": "q",
        "concurrency": "2",
    }  # fmt: skip
    assert started == github.Started(burst_id=request.burst_id, run_id=str(run["id"]), url=run["html_url"])
    kept = row(told)
    assert (kept.run["run_id"], kept.run["attempt"], kept.run["url"]) == (str(run["id"]), "1", run["html_url"])
    assert (kept.requested_by, kept.minutes_planned, kept.ended_at) == ("a test", 90, None)


def test_a_run_that_github_does_not_name_is_found_by_the_bursts_id(told: Settings, fake: FakeGitHub) -> None:
    fake.names_runs = False
    assert github.start(wish(), told).run_id == str(fake.runs[0]["id"])
    assert len(fake.runs) == 1


def test_a_cancelled_burst_is_a_cancelled_run(told: Settings, fake: FakeGitHub) -> None:
    github.start(wish(), told)
    github.cancel(row(told), told)
    assert fake.runs[0]["conclusion"] == "cancelled"
    github.cancel(row(told), told)  # it has ended already, which is no error


def test_how_an_attempt_ended_is_known_while_the_next_one_runs(told: Settings, fake: FakeGitHub) -> None:
    run_id = github.start(wish(), told).run_id
    ended = fake.runs[0] | {"status": "completed", "conclusion": "failure"}
    fake.runs[0] |= {"run_attempt": 2, "status": "in_progress", "earlier": {"1": ended}}
    github.conclude(told)
    assert row(told).run["conclusion"] == "failure"
    assert left(told) == 2000 - 3  # nobody came: the minute of each job
    never = budget.Run(repository=REPOSITORY, run_id=run_id, attempt="3", index="1")
    with postgres.session(told.database()) as session:
        budget.ask(session, told, wish(workers=1), never)
    assert left(told) == 2000 - 3 - 30
    github.conclude(told)
    assert left(told) == 2000 - 3


def test_what_the_budget_refuses_never_reaches_github(told: Settings, fake: FakeGitHub) -> None:
    with pytest.raises(BurstRefused, match="3 workers x 30 min = 90 minutes, and 80 of this month's 80 are left"):
        github.start(wish(), told.model_copy(update={"budget_minutes": 80}))
    assert fake.requests == []


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "hosts", ["fd07::/64", "10.0.0.0/8,fd07::/64,[::1]", "*.example,:::", "http://[", "[::1]:80", "*"]
)
def test_whatever_stands_in_no_proxy_is_no_reason_not_to_ask(
    hosts: str, told: Settings, fake: FakeGitHub, proxies: pytest.MonkeyPatch
) -> None:
    proxies.setenv("NO_PROXY", hosts)
    assert github.start(wish(), told).run_id == str(fake.runs[0]["id"])


def test_hosts_of_no_proxy_are_asked_without_one(told: Settings, fake: FakeGitHub, proxies: pytest.MonkeyPatch) -> None:
    proxies.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    proxies.setenv("NO_PROXY", "fd07::/64,127.0.0.1")
    assert github.start(wish(), told).run_id == str(fake.runs[0]["id"])


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://x"])
def test_a_proxy_that_cannot_be_used_is_said_in_a_sentence(
    proxy: str, told: Settings, fake: FakeGitHub, proxies: pytest.MonkeyPatch
) -> None:
    proxies.setenv("ALL_PROXY", proxy)
    assert "HTTPS_PROXY" in refusal(told)
    assert fake.requests == []


@pytest.mark.parametrize("token", ["ghp_é", "ghp one", "ghp\x00"])
def test_a_token_that_cannot_be_sent_is_not_quoted(token: str, told: Settings, fake: FakeGitHub) -> None:
    with pytest.raises(NotConfigured, match="HOWL_GITHUB_TOKEN") as caught:
        GitHub(told.model_copy(update={"github_token": SecretStr(token)}))
    assert token not in caught.value.message


# --- when GitHub refuses -----------------------------------------------------------------------------------------


def test_a_wrong_token_is_named_and_not_shown(told: Settings, fake: FakeGitHub) -> None:
    assert "HOWL_GITHUB_TOKEN" in refusal(told.model_copy(update={"github_token": SecretStr("ghp_wrong")}))
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"github_repository": "owner/other"}, "no repository owner/other"),
        ({"github_workflow": "other.yml"}, "no workflow other.yml"),
        ({"github_ref": "nowhere"}, "a branch or tag nowhere"),
    ],
)
def test_a_wrong_name_is_said(told: Settings, fake: FakeGitHub, change: dict[str, str], words: str) -> None:
    assert words in refusal(told.model_copy(update=change))
    assert len(fake.requests) == 1


def test_a_token_without_the_right_is_told_which(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(9, 403)
    assert '"Actions: read and write" on owner/name' in refusal(told)
    assert len(fake.requests) == 1


def test_what_was_refused_takes_no_minutes(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(9, 404)
    refusal(told)
    assert left(told) == told.budget_minutes
    assert "404" in row(told).request["failed"]


def test_a_rate_limit_that_lasts_is_said_with_its_end(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(9, 403, x_ratelimit_remaining="0", x_ratelimit_reset=str(int(time.time()) + 1400))
    said = refusal(told)
    assert "until" in said
    assert "(in 1" in said
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [403, 429])
def test_a_rate_limit_that_ends_soon_is_waited_for(told: Settings, fake: FakeGitHub, status: int) -> None:
    fake.fail(1, status, retry_after="1")
    began = time.monotonic()
    github.start(wish(), told)
    assert time.monotonic() - began >= 1
    assert len(fake.runs) == 1


def test_a_secondary_rate_limit_without_an_end_is_not_hammered(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(9, 429)
    assert "takes no more requests" in refusal(told)
    assert len(fake.requests) == 1


def test_a_redirect_is_not_followed_with_the_token(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(1, 301, location="https://example.org/")
    assert "was renamed" in refusal(told)


# --- when nobody knows what happened -----------------------------------------------------------------------------


def test_a_dispatch_that_happened_but_was_not_answered_is_not_made_again(
    told: Settings, fake: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(github_api, "TIMEOUT", 1.0)
    monkeypatch.setattr(github, "FIND_TIMEOUT", PATIENCE)  # it is there, as soon as the fake has come to make it
    fake.dispatch_takes = 3.0
    started = github.start(wish(), told)
    assert (len(fake.runs), fake.count("/dispatches")) == (1, 1)
    assert started.run_id == str(fake.runs[0]["id"])


def test_a_dispatch_that_failed_on_githubs_side_is_made_again_after_a_look(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(1, 502)
    github.start(wish(), told)
    assert (len(fake.runs), fake.count("/dispatches")) == (1, 2)
    first = next(n for n, (_, path) in enumerate(fake.requests) if path.endswith("/dispatches"))
    assert fake.requests[first + 1][0] == "GET"


def test_a_run_that_asked_for_leave_is_known_although_github_lists_nothing(
    told: Settings, fake: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = wish()

    def asks_for_leave(method: str, path: str) -> tuple[int, dict[str, str]] | None:
        if path.endswith("/dispatches"):
            with postgres.session(told.database()) as session:
                budget.ask(session, told, request, budget.Run(repository=REPOSITORY, run_id="77"))
            return 500, {}
        return None

    fake.fault = asks_for_leave
    assert github.start(request, told).run_id == "77"
    assert fake.count("/dispatches") == 1


def test_a_burst_that_github_never_answered_is_given_up_and_a_late_run_of_it_refused(
    told: Settings, fake: FakeGitHub
) -> None:
    fake.fault = lambda *asked: (500, {}) if asked[0] == "POST" else None
    assert "given up" in refusal(told)
    assert fake.count("/dispatches") == github.DISPATCHES
    assert left(told) == told.budget_minutes
    with postgres.session(told.database()) as session:
        late = budget.ask(
            session, told, wish(burst_id=row(told).burst_id), budget.Run(repository=REPOSITORY, run_id="1")
        )
    assert late.refused is not None


def test_a_question_is_repeated_when_github_has_trouble(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(2, 503)
    with GitHub(told) as client:
        assert client.runs() == []
    assert len(fake.requests) == 3


def test_repeating_has_an_end(told: Settings, fake: FakeGitHub) -> None:
    fake.fail(99, 503)
    with GitHub(told) as client, pytest.raises(GitHubFailed, match="try again"):
        client.runs()
    assert len(fake.requests) == github_api.TRIES


def test_an_address_nobody_listens_on_is_said(told: Settings) -> None:
    nobody = told.model_copy(update={"github_api": "http://127.0.0.1:1"})
    assert "cannot be reached" in refusal(nobody)


def test_an_answer_that_is_none_of_githubs_is_said(told: Settings, fake: FakeGitHub) -> None:
    with GitHub(told) as client:
        fake.answer = lambda *_: (200, ["surprise"])  # type: ignore[method-assign]
        with pytest.raises(GitHubFailed, match="HOWL_GITHUB_API"):
            client.runs()


# --- settings ----------------------------------------------------------------------------------------------------


def test_without_repository_or_token_it_is_said_what_to_set(settings: Settings) -> None:
    with pytest.raises(NotConfigured, match="HOWL_GITHUB_REPOSITORY and HOWL_GITHUB_TOKEN"):
        github.start(wish(), settings)


def test_demo_and_tests_never_reach_the_real_github(told: Settings) -> None:
    with pytest.raises(NotConfigured, match="HOWL_LOOPBACK_ONLY"):
        GitHub(told.model_copy(update={"github_api": "https://api.github.com"}))


def test_a_token_is_sent_to_no_address_that_others_could_listen_to() -> None:
    with pytest.raises(SettingsError, match="https://"):
        load_settings(github_api="http://api.example.org")


def test_the_token_shows_neither_in_settings_nor_to_workers(told: Settings) -> None:
    assert TOKEN not in repr(told)
    assert TOKEN not in str(local.worker_environment(told))
