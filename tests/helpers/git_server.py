"""Repositories over HTTP on loopback, as a forge serves them: git's own http-backend behind a small web server."""

import os
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

TIMEOUT = 60
#: Who commits, and no configuration of this machine.
IDENTITY = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{role}_{part}": f"{role}@test" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")},
}


def git(folder: Path, *arguments: str, data: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "init.defaultBranch=main", *arguments],
        env=IDENTITY, input=data, capture_output=True, check=True, timeout=TIMEOUT,
    )  # fmt: skip
    return done.stdout.decode().strip()


def commit(folder: Path, files: Mapping[str, bytes | None]) -> str:
    """Write (None: delete) these files, commit, and return the commit's id."""
    if not (folder / ".git").exists():
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", "as told")
    return git(folder, "rev-parse", "HEAD")


class GitServer:
    """Serves the repositories below a folder until left; `seen` are the paths that were asked for."""

    def __init__(self, root: Path) -> None:
        self.seen: list[str] = []
        server, seen = self, self.seen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.path)
                path, _, query = self.path.partition("?")
                if login := self.headers.get("Authorization"):
                    server.logins.append(login)
                if server.locked.is_set():
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="x"')
                    return self.end_headers()
                if server.moved_to:
                    self.send_response(302)
                    self.send_header("Location", f"{server.moved_to}{self.path}")
                    return self.end_headers()
                if server.silent.is_set():
                    return server.released.wait(TIMEOUT) and None
                return self._answer(_backend(root, self, path, query))

            do_POST = do_GET  # noqa: N815 - as http.server calls it

            def _answer(self, answer: bytes) -> None:
                head, _, body = answer.partition(b"\r\n\r\n")
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
                for name, value in fields.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        #: Where every question is sent on to; whether a login is wanted, and those given; whether nothing is answered,
        #: and the end of that.
        self.moved_to: str | None = None
        self.locked, self.logins = threading.Event(), list[str]()
        self.silent, self.released = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def _backend(root: Path, request: BaseHTTPRequestHandler, path: str, query: str) -> bytes:
    body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
    env = IDENTITY | {
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_METHOD": request.command,
    }
    return subprocess.run(
        ["git", "http-backend"], env=env, input=body, capture_output=True, check=True, timeout=TIMEOUT
    ).stdout
