"""Flower beside the servers of `howl init`: over TLS, of workers with a narrow credential, shown by a browser."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.person import Person
from tests.helpers.servers import COMPOSE, Server, ready
from tests.helpers.support import Process, eventually, optional_program
from tests.helpers.visits import Flower

Start = Callable[..., Process]
#: A page as it looks some seconds after it was opened, by a browser that talks to nobody else.
BROWSER = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--window-size=1400,800", "--virtual-time-budget=8000",
)  # fmt: skip


@pytest.fixture
def flower(server: Server, start: Start, tmp_path: Path) -> Iterator[Flower]:
    """As the .env that `howl init` wrote has it."""
    env = server.env(HOWL_HOME=str(tmp_path / "home"), HOWL_TASK_MODULES="tests.tasks")
    login = f"howl:{server.folder.existing().passwords['flower']}"
    with Flower(start("flower", "--port", "0", env=env), login) as running:
        yield running


def test_its_pages_and_buttons_reach_workers_whose_credential_is_narrow(
    server: Server, howl_server: Process, start: Start, flower: Flower, person: Person
) -> None:
    worker = ready(start("worker", "--name", "worker-1", "--concurrency", "1", env=server.worker_env()))
    flower.knows("celery@worker-1")
    assert person.app.control.enable_events(destination=["celery@worker-1"], reply=True)
    person.sees_work_done()
    page = flower.visitor.get("/worker/celery@worker-1")
    assert (page.status_code, "tests.add" in page.text) == (200, True)
    assert server.folder.existing().passwords["worker"] not in page.text
    queues = {queue["name"]: queue["messages"] for queue in flower.get("/api/queues/length")["active_queues"]}
    assert queues == {"celery": 0, "worker.worker-1": 0}
    assert ">worker.worker-1<" in "".join(flower.visitor.get("/broker").text.split())
    assert flower.press("/api/worker/pool/grow/celery@worker-1").status_code == 200
    person.sees_work_done()
    assert flower.press("/api/worker/shutdown/celery@worker-1").status_code == 200
    assert worker.wait() == 0, worker.output
    assert "Traceback" not in worker.output


def test_a_browser_shows_workers_and_tasks(flower: Flower, person: Person, tmp_path: Path) -> None:
    tell(flower, person, "celery@gh-1", "celery@gh-2")
    for page, words in (("workers", ("celery@gh-1", "celery@gh-2")), ("tasks", ("tests.add", "SUCCESS"))):
        shown = browse(flower, page, tmp_path)
        assert not [word for word in words if word not in shown]
        assert (tmp_path / f"{page}.png").stat().st_size > 20_000


def test_the_health_check_of_its_container_holds(flower: Flower) -> None:
    program, *words = COMPOSE["services"]["flower"]["healthcheck"]["test"][1:]
    assert program == "python"
    words[-1] = words[-1].replace("5555", str(httpx.URL(flower.url).port))
    assert subprocess.run([sys.executable, *words], timeout=30, check=False).returncode == 0


def tell(flower: Flower, person: Person, *workers: str) -> None:
    """What workers tell of themselves, and of a task each."""
    with person.app.connection_for_write() as connection:
        for number, worker in enumerate(workers):
            send = person.app.events.Dispatcher(connection, hostname=worker).send
            task = {"uuid": f"task-{number}", "name": "tests.add"}

            def is_heard(send=send, task=task) -> bool:
                send("worker-online", freq=2)
                send("task-received", **task)
                return task["uuid"] in flower.get("/api/tasks")

            eventually(is_heard)
            send("task-succeeded", **task, result="3", runtime=0.1)


def browse(flower: Flower, page: str, folder: Path) -> str:
    """The page's elements as a person sees them; its picture is left in the folder."""
    user, password = flower.login
    address = flower.url.replace("//", f"//{user}:{password}@") + page  # of this test alone, as its password is
    looks = ("--dump-dom", f"--screenshot={folder / page}.png")
    program = optional_program("chromium-headless-shell", "chromium", "google-chrome")
    browser = [program, *BROWSER, f"--user-data-dir={folder / 'profile'}"]
    answers = [
        subprocess.run([*browser, look, address], capture_output=True, text=True, timeout=60, check=True)
        for look in looks
    ]
    return answers[0].stdout
