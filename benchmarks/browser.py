"""Benchmark of screenshots per second of local pages by one worker, its memory, and its browsers' remains afterwards.

`python -m benchmarks.browser`: each page has a style sheet, a picture, a script, and some screens of text. The first
run starts the browsers; the second finds them running.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click

from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.embedded.isolation import clean_environment, isolate
from howl.embedded.stack import Stack

ROOT = Path(__file__).parents[1]
PROC = Path("/proc")
#: Most seconds for all screenshots of a run, and for the processes of a killed worker to be gone; seconds between two
#: polls of memory (which cost time themselves), and of anything else.
PATIENCE, GONE, SAMPLE, POLL = 300.0, 10.0, 0.5, 0.05
MIB = 1 << 20

PAGE = (
    """<!doctype html><title>Page</title><link rel=stylesheet href=/style.css><img src=/picture.svg>
<h1 id=it></h1><script>it.innerText = location.pathname</script>"""
    + "<p>Some text for people to read. " * 200
)
STYLE = "body { font-family: sans-serif; columns: 2 } p { color: #234 }"
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="200"><circle cx="99" cy="99" r="80"/></svg>'
FILES = {"/style.css": ("text/css", STYLE), "/picture.svg": ("image/svg+xml", PICTURE)}


@click.command()
@click.option("--pages", default=50, show_default=True, type=click.IntRange(min=1), help="Screenshots to take.")
@click.option("--children", default=4, show_default=True, type=click.IntRange(min=1), help="Children of the worker.")
@click.option("--program", default="", help="A browser other than the first that is found.")
def main(pages: int, children: int, program: str) -> None:
    """Take the screenshots, then kill the worker outright."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-browser-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack, site() as url:
            settings = load_settings(redis_url=stack.urls.redis_url, nats_url=stack.urls.nats_url, home=stack.home)
            worker = _worker(settings, home, children, program)
            for name in ("with starting the browsers", "with browsers running"):
                click.echo(f"{name}: {_run(settings, worker.pid, home / 'taken', url, pages)}")
            _kill(worker)
    finally:
        shutil.rmtree(home)


def _run(settings: Settings, worker: int, taken: Path, url: str, pages: int) -> str:
    """Take all screenshots once, and return a sentence with the figures."""
    taken.write_text("")
    app = create_app(settings.model_copy(update={"task_modules": ("benchmarks.browser_tasks",)}))
    began = time.monotonic()
    for number in range(pages):
        app.send_task("bench.capture", args=[f"{url}/{number}", str(taken)])
    most: dict[bool, int] = {True: 0, False: 0}
    while taken.read_text().count("\n") < pages:
        if time.monotonic() > began + PATIENCE:
            raise click.ClickException("The worker did not take its screenshots in time: look at its log.")
        for browser, size in memory(worker).items():
            most[browser] = max(most[browser], size)
        time.sleep(SAMPLE)
    app.close()
    seconds = time.monotonic() - began
    return (
        f"{pages} screenshots in {seconds:.1f} s, {pages / seconds:.1f} a second; "
        f"at most {most[False] // MIB} MiB in the worker and {most[True] // MIB} MiB in its browsers"
    )


def _kill(worker: "subprocess.Popen[bytes]") -> None:
    there = below(worker.pid)
    worker.send_signal(signal.SIGKILL)
    worker.wait(GONE)
    began = time.monotonic()
    while (left := set(filter(_runs, there))) and time.monotonic() < began + GONE:
        time.sleep(POLL)
    click.echo(f"of {len(there)} processes below the killed worker, {len(left)} are left "
               f"after {time.monotonic() - began:.1f} s")  # fmt: skip


def memory(worker: int) -> dict[bool, int]:
    """Return bytes of the worker (False) and of its browsers with all their processes (True), by PSS."""
    guards = [pid for pid in below(worker) if b"supervisor.py" in _file(pid, "cmdline")]
    browsers = {*guards, *(pid for guard in guards for pid in below(guard))}
    everything = {worker, *below(worker)}
    return {True: sum(map(_share, browsers)), False: sum(map(_share, everything - browsers))}


def below(root: int) -> set[int]:
    """Return the pids of all descendants of a process."""
    parents = {int(folder.name): _parent(int(folder.name)) for folder in PROC.glob("[1-9]*")}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def _parent(pid: int) -> int:
    fields = _file(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _runs(pid: int) -> bool:
    fields = _file(pid, "stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] != b"Z"


def _share(pid: int) -> int:
    found = re.search(rb"^Pss: +(\d+) kB", _file(pid, "smaps_rollup"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _file(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # it has ended
        return b""


def _worker(settings: Settings, home: Path, children: int, browser: str) -> "subprocess.Popen[bytes]":
    env = clean_environment(
        HOWL_REDIS_URL=settings.redis(), HOWL_NATS_URL=settings.nats(), HOWL_HOME=str(settings.home),
        HOWL_TASK_MODULES="benchmarks.browser_tasks", HOWL_WEB_ALLOW_PRIVATE="1", HOWL_BROWSER=browser,
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    program = Path(sys.executable).with_name("howl")
    with (home / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [program, "worker", "--name", "looker", "--concurrency", str(children)],
            env=env, stdout=log, stderr=log, cwd=os.fspath(home),
        )  # fmt: skip


@contextmanager
def site() -> Iterator[str]:
    """Serve a site that has a page at every path, and provide its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    """A handler that answers with one of FILES, or with a page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with one of FILES, or with a page."""
        kind, text = FILES.get(self.path, ("text/html", PAGE))
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    main()
