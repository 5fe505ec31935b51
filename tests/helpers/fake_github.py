"""GitHub's API as its documentation describes it, on loopback, for one repository; faults are switched on by a test."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY, WORKFLOW, TOKEN = "owner/name", "burst.yml", "ghp_only-for-tests"
INPUTS = {"burst_id", "runtime_minutes", "num_workers", "tags", "queues", "concurrency"}
ACTIONS = f"/repos/{REPOSITORY}/actions"


class FakeGitHub:
    """Its runs, the requests it was made, and what is wrong with it."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        #: Called for each request with its method and path; what it returns (status, headers) is answered instead.
        self.fault: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda *_: None
        #: Seconds that the answer to a dispatch takes, after the run was made.
        self.dispatch_takes = 0.0
        #: Whether the version of the API is one that names the run it made.
        self.names_runs = True
        self.url = ""

    def count(self, ending: str) -> int:
        """Requests of a path that ends so."""
        return sum(path.split("?")[0].endswith(ending) for _, path in self.requests)

    def fail(self, times: int, status: int, **headers: str) -> None:
        """Answer the next requests with an error."""
        left = iter(range(times))
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        self.fault = lambda *_: (status, told) if next(left, None) is not None else None

    def dispatch(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["ref"] != "main":
            return 422, {"message": f"No ref found for: {body['ref']}"}
        if unexpected := set(body["inputs"]) - INPUTS:
            return 422, {"message": f"Unexpected inputs provided: {sorted(unexpected)}"}
        run_id = 9_000_000_001 + len(self.runs)
        page = f"{self.url}/{REPOSITORY}/actions/runs/{run_id}"
        self.runs.insert(0, {
            "id": run_id, "run_attempt": 1, "status": "queued", "conclusion": None, "html_url": page,
            "event": "workflow_dispatch", "inputs": body["inputs"],
            "display_title": f"burst {body['inputs']['burst_id']}",
        })  # fmt: skip
        if not self.names_runs:
            return 204, None
        return 200, {"workflow_run_id": run_id, "run_url": f"{self.url}{ACTIONS}/runs/{run_id}", "html_url": page}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        path = path.split("?")[0]
        run = next((run for run in self.runs if path.startswith(f"{ACTIONS}/runs/{run['id']}")), None)
        if (method, path) == ("POST", f"{ACTIONS}/workflows/{WORKFLOW}/dispatches"):
            return self.dispatch(body)
        if (method, path) == ("GET", f"{ACTIONS}/workflows/{WORKFLOW}/runs"):
            return 200, {"total_count": len(self.runs), "workflow_runs": self.runs}
        if run is None:
            return 404, {"message": "Not Found"}
        if (method, path) == ("POST", f"{ACTIONS}/runs/{run['id']}/cancel"):
            if run["status"] == "completed":
                return 409, {"message": "Cannot cancel a workflow run that is completed."}
            run |= {"status": "completed", "conclusion": "cancelled"}
            return 202, {}
        attempt = path.partition("/attempts/")[2] or str(run["run_attempt"])
        told = run if attempt == str(run["run_attempt"]) else run.get("earlier", {}).get(attempt)
        return (200, told) if told else (404, {"message": "Not Found"})


@contextmanager
def fake_github() -> Iterator[FakeGitHub]:
    """The fake at work; `url` is where."""
    fake = FakeGitHub()
    server = Server(("127.0.0.1", 0), Handler)
    server.fake = fake
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class Server(ThreadingHTTPServer):
    """One that its handlers know the fake by."""

    fake: FakeGitHub


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and writes what the fake answers, or its fault."""

    server: Server

    def do_GET(self) -> None:
        self._reply("GET")

    def do_POST(self) -> None:
        self._reply("POST")

    def _reply(self, method: str) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null")
        fake.requests.append((method, self.path))
        if (fault := fake.fault(method, self.path)) is not None:
            return self._send(fault[0], {"message": "As the test wants."}, fault[1])
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            return self._send(401, {"message": "Bad credentials"})
        if self.headers["x-github-api-version"] != "2026-03-10":
            return self._send(400, {"message": "Unknown version"})
        status, answer = fake.answer(method, self.path, body)
        if self.path.endswith("/dispatches"):
            time.sleep(fake.dispatch_takes)
        return self._send(status, answer)

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up, as it should
            self.send_response(status)
            for name, value in {**(headers or {}), "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
