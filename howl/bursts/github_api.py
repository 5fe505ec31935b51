"""The part of GitHub's REST API that bursts need; each error is a sentence that says what to do.

Sources: docs.github.com/en/rest/actions/workflows and /workflow-runs; how long to wait after too many requests:
docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api.
"""

import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from howl.config import LOOPBACK_HOSTS, Settings
from howl.errors import GitHubFailed, GitHubUnsure, NotConfigured

VERSION = "2026-03-10"
#: Seconds to connect, and to wait for each answer.
CONNECT_TIMEOUT, TIMEOUT = 5.0, 15.0
#: Attempts at a request that may be repeated; half the seconds before the second one, doubled for each further one.
#: After SILENCE seconds without an answer it is not repeated, so that a person hears of it within 20.
TRIES, FIRST_WAIT, SILENCE = 4, 0.5, 10.0
#: Most seconds to wait for a rate limit to end; one that ends later is reported.
PATIENCE = 20.0
#: Seconds assumed for a secondary limit that does not say how long it lasts: GitHub asks for a minute.
UNSAID = 60.0
#: Longest rate limit in seconds; a longer one is cut to it.
LONGEST = 86_400.0
#: Number of newest runs in which to look for one.
RUNS_SEEN = 50

#: Characters of a token: the error for one that cannot be sent would quote the token.
TOKEN = re.compile(r"[\x21-\x7e]+")

#: Errors before the request was sent: nothing can have happened.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, kw_only=True)
class WorkflowRun:
    """A run as GitHub knows it; `conclusion` (success, failure, cancelled, timed_out …) is None until it has ended."""

    run_id: str
    title: str
    status: str
    conclusion: str | None
    url: str


class GitHub:
    """A connection, used in a `with`; raises NotConfigured, GitHubFailed, or GitHubUnsure where documented."""

    def __init__(self, settings: Settings) -> None:
        if not is_configured(settings):
            raise NotConfigured("Bursts on GitHub need HOWL_GITHUB_REPOSITORY and HOWL_GITHUB_TOKEN; or add --local.")
        if settings.loopback_only and urlsplit(settings.github_api).hostname not in LOOPBACK_HOSTS:
            raise NotConfigured("HOWL_GITHUB_API names another machine, and HOWL_LOOPBACK_ONLY is set.")
        assert settings.github_token  # noqa: S101  # is_configured has checked, which mypy cannot see
        self.repository = str(settings.github_repository)
        self.workflow, self.ref = settings.github_workflow, settings.github_ref
        token = settings.github_token.get_secret_value().strip()
        if not TOKEN.fullmatch(token):
            raise NotConfigured("HOWL_GITHUB_TOKEN has characters that no token has: copy it anew from GitHub.")
        self._http = _client(f"{settings.github_api}/repos/{self.repository}/actions", token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def dispatch(self, inputs: dict[str, str]) -> tuple[str, str] | None:
        """Start the workflow; return its run's id and page, or None if GitHub accepted it without naming the run.

        Raises GitHubUnsure when it may have started although no answer says so: look for the run before repeating.
        """
        body = {"ref": self.ref, "inputs": inputs}
        answer = self._ask("POST", f"/workflows/{self.workflow}/dispatches", body, repeatable=False)
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        told = _json(answer)
        return (str(told["workflow_run_id"]), str(told.get("html_url", ""))) if "workflow_run_id" in told else None

    def runs(self) -> list[WorkflowRun]:
        """Return the newest runs that a dispatch started."""
        path = f"/workflows/{self.workflow}/runs?event=workflow_dispatch&per_page={RUNS_SEEN}"
        found = _json(self._ask("GET", path)).get("workflow_runs") or []
        return [_run(told) for told in found if isinstance(told, dict)]

    def run(self, run_id: str, attempt: str) -> WorkflowRun | None:
        """Return one attempt of a run; None if GitHub does not know it."""
        answer = self._ask("GET", f"/runs/{run_id}/attempts/{attempt}", accepted=(httpx.codes.NOT_FOUND,))
        return None if answer.status_code == httpx.codes.NOT_FOUND else _run(_json(answer))

    def cancel(self, run_id: str) -> bool:
        """Cancel a run; return False if it had ended already."""
        answer = self._ask("POST", f"/runs/{run_id}/cancel", accepted=(httpx.codes.CONFLICT,))
        return answer.status_code != httpx.codes.CONFLICT

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        repeatable: bool = True,
        accepted: tuple[int, ...] = (),
    ) -> httpx.Response:
        silent_until = time.monotonic() + SILENCE
        for tried in range(1, TRIES + 1):
            again = tried < TRIES
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.RequestError as error:
                self._or_raise(again and time.monotonic() < silent_until, error, repeatable)
                _pause(FIRST_WAIT * 2**tried)
                continue
            if answer.is_success or answer.status_code in accepted:
                return answer
            if (limited := _limited_for(answer)) is not None:
                if not again or limited > PATIENCE:
                    raise GitHubFailed(_limit(limited))
                _pause(limited)
            elif answer.is_server_error and repeatable and again:
                _pause(FIRST_WAIT * 2**tried)
            else:
                raise self._refusal(answer, repeatable)
        raise AssertionError("the last try returns or raises")

    def _or_raise(self, again: bool, error: httpx.RequestError, repeatable: bool) -> None:
        if isinstance(error, NOT_SENT):
            if not again:
                raise GitHubFailed(
                    f"GitHub's API at {self._http.base_url.host} cannot be reached ({_reason(error)})."
                ) from error
        elif not repeatable:
            raise GitHubUnsure(f"GitHub took the request and did not answer ({_reason(error)}).") from error
        elif not again:
            raise GitHubFailed(f"GitHub does not answer ({_reason(error)}): try again.") from error

    def _refusal(self, answer: httpx.Response, repeatable: bool) -> GitHubFailed:
        said = _said(answer)
        if answer.is_server_error:
            kind = GitHubFailed if repeatable else GitHubUnsure
            return kind(f"GitHub has trouble ({answer.status_code}{said}): try again, or see githubstatus.com.")
        advice = _ADVICE.get(answer.status_code, _UNKNOWN).format(
            repository=self.repository, workflow=self.workflow, ref=self.ref
        )
        return GitHubFailed(f"GitHub refuses ({answer.status_code}{said}): {advice}")


def is_configured(settings: Settings) -> bool:
    """Return whether bursts on GitHub can be started from here."""
    return settings.github_repository is not None and settings.github_token is not None


def _client(url: str, token: str) -> httpx.Client:
    """Open a client with the proxy that the environment names for this host, and no other.

    httpx reads all of NO_PROXY, ALL_PROXY and the like, and raises for what it does not know: SOCKS, or a network
    (`fd07::/64`), which other programs accept.
    """
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {token}",
        "User-Agent": "howl",
        "X-GitHub-Api-Version": VERSION,
    }
    try:
        return httpx.Client(
            base_url=url, headers=headers, timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            verify=httpx.create_ssl_context(), trust_env=False, proxy=_proxy(url),
        )  # fmt: skip
    except (httpx.InvalidURL, ImportError, ValueError, OSError) as error:
        raise GitHubFailed(
            f"This environment names a proxy, or certificates, that cannot be used ({type(error).__name__}): set "
            "HTTPS_PROXY to an HTTP proxy's address or unset it and ALL_PROXY, and see that SSL_CERT_FILE can be read."
        ) from error


def _proxy(url: str) -> str | None:
    """Return the proxy of HTTPS_PROXY (or HTTP_PROXY) or ALL_PROXY, unless NO_PROXY names the host."""
    where = urlsplit(url)
    named = getproxies()
    found = named.get(where.scheme) or named.get("all")
    if not found or proxy_bypass(where.netloc.rpartition("@")[2]):
        return None
    return found if "://" in found else f"http://{found}"


_UNKNOWN = "check HOWL_GITHUB_API."
_ADVICE = {
    301: "{repository} was renamed: correct HOWL_GITHUB_REPOSITORY.",
    401: "the token is wrong or has expired; put a new one into HOWL_GITHUB_TOKEN.",
    403: 'give the token "Actions: read and write" on {repository}.',
    404: "there is no repository {repository}, no workflow {workflow} in it, or the token may not see them.",
    422: "is there a branch or tag {ref}, and has its {workflow} `workflow_dispatch` with HOWL's inputs?",
}


def _limited_for(answer: httpx.Response) -> float | None:
    """Return the seconds until GitHub accepts requests again; None if this is no rate limit."""
    if answer.status_code not in (httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS):
        return None
    told = answer.headers
    if told.get("retry-after", "").isdecimal():
        return float(told["retry-after"])
    if told.get("x-ratelimit-remaining") == "0" and told.get("x-ratelimit-reset", "").isdecimal():
        return max(0.0, float(told["x-ratelimit-reset"]) - time.time())
    secondary = answer.status_code == httpx.codes.TOO_MANY_REQUESTS or "rate limit" in _said(answer)
    return UNSAID if secondary else None


def _limit(seconds: float) -> str:
    seconds = min(seconds, LONGEST)
    until = datetime.fromtimestamp(time.time() + seconds, UTC)
    return (
        f"GitHub takes no more requests of this token until {until:%H:%M:%S} UTC (in {seconds:.0f} s): try again then."
    )


def _pause(seconds: float) -> None:
    time.sleep(seconds + random.uniform(0, FIRST_WAIT))  # noqa: S311  # jitter, no secret


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _said(answer: httpx.Response) -> str:
    """Return GitHub's own message, at times the only clue to an error."""
    try:
        message = str(answer.json()["message"])
    except (ValueError, LookupError, TypeError):
        return ""
    return f", {message[:200].rstrip('.')}" if message.isprintable() else ""


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise GitHubFailed("GitHub's answer is none of GitHub's: check HOWL_GITHUB_API.")
    return told


def _run(told: dict[str, Any]) -> WorkflowRun:
    return WorkflowRun(
        run_id=str(told.get("id", "")),
        title=str(told.get("display_title", "")),
        status=str(told.get("status", "")),
        conclusion=told.get("conclusion"),
        url=str(told.get("html_url", "")),
    )
