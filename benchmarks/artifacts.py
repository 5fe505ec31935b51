"""Benchmark of an artifact's upload, against a plain TCP copy of as many bytes over the same distance.

Both alternate, through a proxy that delays both directions (benchmarks/proxy.py); both end when the far side reports
that it has written everything. An upload also checks, describes and indexes what it stores. `--help` shows the options.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import nats

from howl.artifacts import store
from howl.config import Settings, load_settings
from howl.embedded.isolation import isolate
from howl.embedded.stack import Stack
from howl.worker.task import uploads
from howl.worker.task.artifacts import _file
from tests.helpers.desk import Desk

PREFIX = "bench"
CHUNK = 1 << 20


@click.command()
@click.option("--megabytes", default=50, show_default=True, help="Size of the file, in 2^20 bytes.")
@click.option("--rounds", default=7, show_default=True, help="Rounds; both go once in each.")
@click.option("--distance", default=50.0, show_default=True, help="Milliseconds of a round trip.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(megabytes: int, rounds: int, distance: float, as_json: bool) -> None:
    """Measure uploads against a plain TCP copy."""
    isolate()
    home = Path(tempfile.mkdtemp(prefix="howl-bench-", dir="/tmp"))
    home.chmod(0o711)  # PostgreSQL runs as another user when this runs as root
    try:
        with Stack(home / "state") as stack, ExitStack() as ends:
            found = Race(stack, home, megabytes << 20, distance, ends).run(rounds)
    finally:
        shutil.rmtree(home)
    _show(found, megabytes, as_json=as_json)


class Race:
    """A file, the far side of a copy, NATS with its bucket, and a proxy in front of each."""

    def __init__(self, stack: Stack, home: Path, size: int, distance: float, ends: ExitStack) -> None:
        self.file, self.size = home / "file", size
        with self.file.open("wb") as file:
            for _ in range(size // CHUNK):
                file.write(os.urandom(CHUNK))
        self.near = load_settings(nats_url=stack.urls.nats_url, subject_prefix=PREFIX)
        self.server = ends.enter_context(Desk(self.near.model_copy(update={"artifact_share": 1.0})))
        self.sink = Sink(home / "copy", size)
        self.copy_port = _proxy(self.sink.port, distance, ends)
        far = stack.urls.nats_url.rpartition(":")[0] + f":{_proxy(stack.nats.port, distance, ends)}"
        self.uploader = uploads.Uploader(load_settings(nats_url=far, subject_prefix=PREFIX))

    def run(self, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of each; the first round, in which connections are opened, is not counted."""
        took: dict[str, list[float]] = {"tcp": [], "upload": []}
        for number in range(rounds + 1):
            for name, act in (("tcp", self.copy), ("upload", self.upload)):
                began = time.perf_counter()
                act()
                if number:
                    took[name].append(time.perf_counter() - began)
            asyncio.run(_with_jetstream(self.near, _empty))
            self.server.curator.room.files.clear()
        return took

    def copy(self) -> None:
        with socket.create_connection(("127.0.0.1", self.copy_port)) as there, self.file.open("rb") as file:
            there.sendfile(file)
            assert there.recv(1) == b"k"

    def upload(self) -> None:
        source, size, _ = _file(self.file)
        assert self.uploader.upload("file", source, size).size == size


class Sink(threading.Thread):
    """A server that writes what it receives into a file, and confirms when that is complete."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(daemon=True)
        self.path, self.size = path, size
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client, self.path.open("wb") as file:
                left = self.size
                while left and (data := client.recv(CHUNK)):
                    file.write(data)
                    left -= len(data)
                client.sendall(b"k")


def _proxy(target: int, distance: float, ends: ExitStack) -> int:
    """Start a proxy that is `distance` milliseconds from the target, and return its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    argv = [sys.executable, str(Path(__file__).with_name("proxy.py")), str(port), str(target), str(distance)]
    process = ends.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
    ends.callback(process.kill)
    assert process.stdout is not None
    process.stdout.readline()
    return port


async def _with_jetstream(settings: Settings, work: Any) -> None:
    client = await nats.connect(settings.nats(), connect_timeout=5)
    try:
        await work(client.jetstream())
    finally:
        await client.close()


async def _empty(stream: Any) -> None:
    await stream.purge_stream(store.stream_name(store.bucket(PREFIX)))


def _show(found: dict[str, list[float]], megabytes: int, *, as_json: bool) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ratio = medians["tcp"] / medians["upload"]
    if as_json:
        click.echo(json.dumps({"seconds": found, "medians": medians, "ratio": ratio}))
        return
    for name, median in medians.items():
        rounds = ", ".join(f"{seconds:.2f}" for seconds in found[name])
        click.echo(f"{name:7} {median:5.2f} s, {megabytes / median:5.0f} MiB/s   ({rounds})")
    click.echo(f"An upload has {ratio:.2f} of the speed of a plain copy.")


if __name__ == "__main__":
    main()
