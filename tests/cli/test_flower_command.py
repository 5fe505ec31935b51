"""`howl flower`: who gets in, what may be done there, and what is kept."""

import stat
import subprocess
import tempfile
import time
import uuid
from base64 import b64encode
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from celery.events.state import State
from click.testing import CliRunner
from flower.urls import handlers

from howl.celery import create_app
from howl.cli import main
from howl.config import load_settings
from howl.embedded.isolation import clean_environment
from howl.server.flower import Guarded
from tests.helpers.crew import HOWL
from tests.helpers.support import PATIENCE, Process, eventually
from tests.helpers.visits import LOGIN, Flower

PAGES = ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics", "/static/js/flower.js")
#: Every path that takes a POST and changes something: all of the API's but those that read.
BUTTONS = [
    path.replace("(.+)", "w1").lstrip("/")
    for path, handler in (entry[:2] for entry in handlers if isinstance(entry, tuple) and len(entry) == 2)
    if path.startswith("/api/") and "post" in vars(handler)
]


@pytest.fixture(scope="module")
def folder(stack):
    return Path(tempfile.mkdtemp(prefix="flower-", dir=stack.home))


@pytest.fixture(scope="module")
def env(stack, folder):
    """A server's address, a password, and a place for what is kept."""
    given = {"REDIS_URL": stack.urls.redis_url, "KEY_PREFIX": f"{folder.name}:", "HOME": str(folder / "state")}
    return clean_environment(FLOWER_BASIC_AUTH=LOGIN, **{f"HOWL_{name}": value for name, value in given.items()})


@pytest.fixture(scope="module")
def run(folder, env):
    """Start `howl flower` on a free port, and wait for it."""
    with ExitStack() as running:
        numbers = count(1)

        def _run(*options: str, env: dict[str, str] = env, **more: str) -> Flower:
            process = Process([HOWL, "flower", "--port", "0", *options], env, folder / f"{next(numbers)}.log")
            running.callback(process.end)
            return running.enter_context(Flower(process, **more))

        yield _run


@pytest.fixture(scope="module")
def flower(run):
    return run()


@pytest.fixture(scope="module")
def task_id(flower, env):
    """A task that this Flower has seen."""
    app = create_app(load_settings(redis_url=env["HOWL_REDIS_URL"], key_prefix=env["HOWL_KEY_PREFIX"]))
    seen = str(uuid.uuid4())
    with app.connection_for_write() as connection:
        tell = app.events.Dispatcher(connection, hostname="celery@w1").send

        def is_seen():
            tell("task-received", uuid=seen, name="tests.add")
            return seen in flower.get("/api/tasks")

        eventually(is_seen)  # until it listens, nobody does
        tell("task-progress", uuid=seen, done=1, total=2)
        tell("task-log", uuid=seen, lines=["a line"])
        tell("task-succeeded", uuid=seen, result="3", runtime=0.1)
        eventually(lambda: flower.get(f"/api/task/info/{seen}")["result"] == "3")
    app.close()
    return seen


@pytest.fixture(scope="module")
def second(run, flower, task_id):
    """The same, ended and started again, for looking only."""
    flower.process.popen.terminate()
    assert flower.process.wait() == 0, flower.process.output
    return run("--read-only", "--url-prefix", "/sub/flower/")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_for_those_who_log_in(flower, path):
    assert httpx.get(flower.url + path, trust_env=False).status_code == 401
    assert flower.visitor.get(path).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["Basic", "Basic !", "Bearer x", f"Digest {b64encode(LOGIN.encode()).decode()}", "Basic w6k6w6k=",
     f"Basic {b64encode(b'me:').decode()}", f"Basic {b64encode(LOGIN[:-1].encode()).decode()}"],
)  # fmt: skip
def test_what_is_no_login_is_refused(flower, header):
    answer = httpx.get(flower.url, headers={"Authorization": header}, trust_env=False)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="flower"')


def test_a_stranger_who_sends_much_is_refused_as_well(flower):
    answer = httpx.post(f"{flower.url}api/task/send-task/tests.add", content=b"x" * 100_000, trust_env=False)
    assert answer.status_code == 401


def test_only_this_machine_learns_without_a_login_that_it_is_well(flower):
    assert httpx.get(f"{flower.url}healthcheck", trust_env=False).text == "OK"
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=elsewhere) as client:
        assert client.get(f"{flower.url}healthcheck").status_code == 401


def test_a_page_of_another_site_presses_no_button(flower):
    answer = flower.visitor.post("/api/task/revoke/x", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


def test_the_password_is_in_no_command_line_and_no_log(flower):
    line = Path(f"/proc/{flower.process.pid}/cmdline").read_text()
    assert "flower" in line
    assert LOGIN.partition(":")[2] not in line + flower.process.output


def test_it_listens_on_loopback_alone(flower):
    assert flower.url.startswith("http://127.0.0.1:")


def test_what_it_keeps_is_private(flower, env):
    kept = Path(env["HOWL_HOME"]) / "flower"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    files = list(kept.iterdir())
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_progress_and_log_lines_are_no_state_of_a_task(flower, task_id):
    assert flower.get(f"/api/task/info/{task_id}")["state"] == "SUCCESS"


def test_what_it_saw_is_there_when_it_starts_again_below_another_path(second, task_id):
    assert second.url.endswith("/sub/flower/")
    assert second.get(f"api/task/info/{task_id}")["result"] == "3"
    assert httpx.get(f"{second.url}healthcheck", trust_env=False).text == "OK"


def test_its_path_is_found_without_the_last_slash_too(second):
    bare = httpx.URL(second.url).copy_with(path="/sub/flower")
    answer = second.visitor.get(bare, params={"a": "b"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/sub/flower/?a=b")
    assert second.visitor.get(bare, follow_redirects=True).status_code == 200
    assert httpx.get(bare, trust_env=False).status_code == 401


def test_that_nobody_works_is_no_reason_for_warnings(second):
    assert second.get("api/workers", refresh=1) == {}
    assert "Inspect method" not in second.process.output


def test_a_worker_that_is_gone_for_long_is_forgotten_everywhere():
    now, guarded = time.time(), Guarded.__new__(Guarded)
    state = State()
    state.counter = {}
    for name, age, freq in (("there", 0, 60), ("lately", 50, 1), ("gone", 200, 1), ("left", 300, 1), ("silent", 0, 60)):
        for kind in ("worker-heartbeat", "worker-offline")[: 2 if name in ("left", "silent") else 1]:
            told = {"type": kind, "hostname": name, "freq": freq, "clock": 1, "timestamp": now - age}
            state.event(told | {"local_received": now - age})
        state.counter[name] = {"worker-heartbeat": 1}
    answered = {"there": now - 900, "silent": now - 10, "asked": now - 200, "gone": now - 900}
    guarded.events, guarded.options = SimpleNamespace(state=state), SimpleNamespace(purge_offline_workers=100)
    guarded.inspector = SimpleNamespace(workers={name: {"timestamp": at} for name, at in answered.items()})
    guarded.forget_the_dead()
    assert set(state.workers) == set(state.counter) == {"there", "lately", "silent"}
    assert set(guarded.workers) == {"there", "silent"}


@pytest.mark.parametrize("path", BUTTONS)
def test_a_read_only_one_refuses_every_button(second, path):
    answer = second.press(path)
    assert (answer.status_code, answer.text) == (403, "Read only mode is enabled")


def test_every_button_is_among_those_tried():
    assert len(BUTTONS) == 14


def test_on_the_servers_of_howl_up_a_password_is_made_once(stack, run):
    env = clean_environment(HOWL_HOME=str(stack.home))
    path = stack.home / "flower" / "password"
    first = run(env=env, login="howl:unknown")
    password = path.read_text()
    assert (stat.S_IMODE(path.stat().st_mode), len(password)) == (0o600, 48)
    assert (str(path) in first.process.output, password in first.process.output) == (True, False)
    assert httpx.get(first.url, auth=("howl", password), trust_env=False).status_code == 200
    first.process.end()
    run(env=env, login=f"howl:{password}").get("/api/tasks")


def test_a_port_that_is_taken_is_said_in_one_sentence(second, env, tmp_path):
    line = [HOWL, "flower", "--port", str(httpx.URL(second.url).port)]
    told = env | {"HOWL_HOME": str(tmp_path)}
    answer = subprocess.run(line, env=told, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (answer.returncode, "Flower cannot listen on 127.0.0.1" in answer.stderr) == (1, True)
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("line", "changed", "said"),
    [
        ([], {"FLOWER_BASIC_AUTH": ""}, "Nobody could log in: set FLOWER_BASIC_AUTH"),
        (["--address", "203.0.113.1"], {"FLOWER_BASIC_AUTH": ""}, "Nobody could log in"),
        ([], {"FLOWER_BASIC_AUTH": "me"}, "not of the form user:password"),
        ([], {"FLOWER_BASIC_AUTH": "me:short"}, "not of the form user:password"),
        ([], {"FLOWER_BASIC_AUTH": f"{LOGIN},:nobody's"}, "not of the form user:password"),
        (["--", "--basic_auth=me:whoever-looks"], {}, "set FLOWER_BASIC_AUTH instead"),
        (["--", "--cookie-secret=whoever-looks"], {}, "set FLOWER_COOKIE_SECRET instead"),
        (["--", "--address=0.0.0.0"], {}, "`howl flower` itself decides address"),
        (["--", "--persistent=False"], {}, "`howl flower` itself decides persistent"),
        (["--", "--max_taks=5"], {}, "Flower's own options are not as they should be"),
        (["--", "--max_tasks", "5"], {}, "Flower's own options are not as they should be"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list | dict) else None,
)
def test_it_does_not_start_when_it_would_be_open_or_not_as_told(env, tmp_path, line, changed, said):
    told = env | {"HOWL_HOME": str(tmp_path)} | changed
    answer = CliRunner(env=dict.fromkeys(("FLOWER_BASIC_AUTH",)) | told).invoke(main, ["flower", "--port", "0", *line])
    assert (answer.exit_code, said in answer.output) == (1, True), answer.output
    assert "whoever-looks" not in answer.output
    assert "me:short" not in answer.output
