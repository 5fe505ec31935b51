"""`howl.install`: any Celery application becomes a HOWL one, and what of its configuration counts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.control import Control
from click.testing import CliRunner

import howl
from howl.celery import application, settings_of
from howl.celery_settings import FIXED, overruled
from howl.cli import main
from howl.errors import NotConfigured, SettingsError
from tests.helpers.support import eventually

PLAIN = "tests.projects.plain"
ELSEWHERE = "amqp://guest:only-for-tests@nowhere.invalid//"
#: What a project says in its own words, as Celery's, in its old names, and in Django's.
NEW = {"broker_url": ELSEWHERE, "result_backend": "rpc://", "task_default_queue": "mine", "timezone": "Europe/Oslo"}
OLD = {"BROKER_URL": ELSEWHERE, "CELERY_RESULT_BACKEND": "rpc://", "CELERY_DEFAULT_QUEUE": "mine",
       "CELERY_TIMEZONE": "Europe/Oslo"}  # fmt: skip
DJANGO = {f"CELERY_{name.upper()}": value for name, value in NEW.items()}


@pytest.fixture
def make() -> Any:
    """Make an application that is gone after the test."""
    made: list[Celery] = []

    def _make(*args: Any, **options: Any) -> Celery:
        made.append(Celery(*args, set_as_current=False, **options))
        return made[-1]

    yield _make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("said", "namespace"), [(NEW, None), (OLD, None), (DJANGO, "CELERY")], ids=["new", "old", "django"]
)
@pytest.mark.parametrize("when", ["first", "before it is read", "after it was read"])
def test_howl_decides_broker_and_backend_and_keeps_the_rest(make, settings, said, namespace, when):
    app = make("theirs")
    if when == "first":
        howl.install(app, settings)
    app.config_from_object(said, namespace=namespace)
    if when == "after it was read":
        assert app.conf.task_default_queue == "mine"
    howl.install(app, settings)
    assert (app.conf.broker_url, app.conf.broker_read_url) == (settings.redis(), settings.redis())
    assert app.conf.result_backend == app.conf["result_backend"] == "howl.backend:HowlBackend"
    assert (app.conf.task_default_queue, app.conf.timezone) == ("mine", "Europe/Oslo")
    assert type(app.backend).__module__ == "howl.backend"
    with app.connection_for_write() as connection:
        assert connection.transport_cls == "howl.broker.transport:Transport"
    assert overruled(app.conf) == ["broker_url", "result_backend"]


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_the_environment_leads_to_no_other_broker(make, settings, monkeypatch, name):
    monkeypatch.setenv(name, ELSEWHERE)
    app = howl.install(make("theirs", broker=ELSEWHERE), settings)
    for connect in (app.connection_for_read, app.connection_for_write):
        with connect() as connection:
            assert connection.as_uri(include_password=True).startswith(settings.redis().rstrip("/"))


def test_nor_does_what_is_said_after_the_line(make, settings):
    app = howl.install(make("theirs"), settings)
    app.conf.broker_url = ELSEWHERE
    assert app.conf.task_acks_late
    app.conf.update(broker_url=ELSEWHERE, task_acks_late=False, result_backend="rpc://", imports=["a"])
    assert app.conf.broker_url == settings.redis()
    assert app.conf.result_backend == FIXED["result_backend"]
    assert not app.conf.task_acks_late, "which HOWL leaves to the application"
    assert app.conf.imports == ("a",)


def test_an_application_that_was_configured_anew_is_still_howls(make, settings):
    app = howl.install(make("theirs"), settings)
    assert app.conf.broker_url == settings.redis()
    app.config_from_object(NEW)
    assert (app.conf.broker_url, app.conf.task_default_queue) == (settings.redis(), "mine")


def test_the_line_written_twice_is_written_once(make, settings):
    app = howl.install(make("theirs"))
    other = settings.model_copy(update={"key_prefix": "other:"})
    assert howl.install(howl.install(app, settings), other) is app
    assert settings_of(app) is other
    assert len(app.conf.maps) == len(make("stock").conf.finalize().maps) + 2


def test_without_a_redis_nothing_goes_to_celerys_default(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOWL_HOME", str(tmp_path))
    app = howl.install(make("theirs", broker=ELSEWHERE))
    for _ in range(2):  # Celery keeps what it had read when the first look failed
        with pytest.raises(NotConfigured, match="No address of Redis"):
            app.send_task("x")


def test_tasks_run_on_the_spot_where_there_are_no_servers(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOWL_HOME", str(tmp_path))
    app = howl.install(make("theirs", task_always_eager=True))

    @app.task
    def increment(x):
        return x + 1

    assert increment.delay(1).get() == 2


@pytest.mark.parametrize("name", ["task_serializer", "result_serializer"])
def test_what_is_no_json_is_refused_where_it_would_be_sent(make, settings, name):
    app = howl.install(make("theirs"), settings)
    app.conf[name] = "pickle"
    with pytest.raises(SettingsError, match=f"{name} is 'pickle'.*remove it"):
        app.send_task("x", retry=False)


def test_a_remote_control_of_its_own_is_refused(make, settings):
    with pytest.raises(SettingsError, match="remote control of its own"):
        howl.install(make("theirs", control=type("Mine", (Control,), {})), settings)


def test_installing_takes_nothing_from_the_current_application():
    code = (
        "import celery, howl; app = celery.Celery('theirs'); howl.install(app); import howl.backend; "
        "assert celery.current_app.main == 'theirs', celery.current_app.main"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.projects.nothing", "no module tests.projects.nothing"), ("nothing", "no module nothing"),
        ("tests.projects", "no Celery application"), ("tests.projects.plain:add", "no Celery application"),
        ("tests.projects.not_howls", "write `howl.install(app)`"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_told_in_one_sentence(settings, name, said):
    with pytest.raises(NotConfigured, match="HOWL_APP") as refused:
        application(settings.model_copy(update={"app": name}))
    assert said in refused.value.message


def test_a_module_that_is_missing_within_the_project_is_the_projects_own_error(settings, tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        application(settings.model_copy(update={"app": "half"}))


def test_a_worker_is_refused_whose_task_is_sent_as_pickle(start, worker_env, tmp_path):
    (tmp_path / "pickles.py").write_text(
        "import celery, howl\napp = howl.install(celery.Celery('pickles'))\n"
        "@app.task(name='pickles.one', serializer='pickle')\ndef one(): pass\n"
    )
    worker = start("worker", env=worker_env | {"HOWL_APP": "pickles", "PYTHONPATH": str(tmp_path)})
    assert worker.wait() == 1
    assert "The task pickles.one is sent as pickle" in worker.output
    assert "Traceback" not in worker.output


def test_the_folder_is_searched_last_for_an_application_that_the_command_line_names(tmp_path, env, monkeypatch):
    (tmp_path / "here.py").write_text("import celery, howl\napp = howl.install(celery.Celery('here'))\n"
                                      "@app.task(name='here.task')\ndef one(): pass\n")  # fmt: skip
    (tmp_path / "httpx.py").write_text("raise SystemExit('a file of the folder ran')\n")
    line = [str(Path(sys.executable).with_name("howl"))]
    for given in (["-A", "here", "submit", "--list"], ["submit", "--app", "here", "--list"]):
        done = subprocess.run([*line, *given], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert "here.task" in done.stdout, done.stderr
    named = subprocess.run([*line, "submit", "--list"], cwd=tmp_path, env=env | {"HOWL_APP": "here"},
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert (named.returncode, "PYTHONPATH" in named.stderr, "Traceback" in named.stderr) == (1, True, False)


def test_help_of_each_command_that_needs_an_application_tells_of_the_option():
    for command in ("up", "worker", "server", "submit", "flower", "mcp"):
        assert "--app" in CliRunner().invoke(main, [command, "--help"]).output


def test_a_project_of_somebody_elses_is_served_submitted_to_and_run(start, env, worker_env, task_row, settings):
    given = {"HOWL_TASK_MODULES": "", "HOWL_APP": ""}
    server = start("server", "--app", PLAIN, env=env | given)
    ours = start("worker", "-A", PLAIN, "--name", "ours", "--concurrency", "1", env=worker_env | given)
    theirs = start(
        "-A", PLAIN, "worker", "-n", "theirs", "-c", "1", "-l", "INFO", env=worker_env | given, program="celery"
    )
    for process, word in ((server, "server is up"), (ours, " ready."), (theirs, " ready.")):
        eventually(lambda process=process, word=word: word in process.output or process.popen.poll() is not None)
        assert process.popen.poll() is None, process.output
    assert "Decided by HOWL, whatever the application says (docs/celery.md): broker_transport_options, broker_url, " \
           "result_backend." in theirs.output  # fmt: skip
    for output in (ours.output, theirs.output):
        assert "only-for-tests" not in output
    app = application(settings.model_copy(update={"app": PLAIN}))
    results = [app.tasks[f"{PLAIN}.who"].delay() for _ in range(20)]
    assert {result.get(timeout=45)[0] for result in results} <= {"celery@ours", "celery@theirs"}
    assert all(result.get()[1] for result in results), "its own request class is not in use"
    assert task_row(results[0].id).queue == "plain"
    for worker in ("ours", "theirs"):
        submitted = start("submit", f"{PLAIN}.add", "--args", "[1, 2]", "--worker", worker, "--wait",
                          env=env | given | {"HOWL_APP": PLAIN})  # fmt: skip
        assert (submitted.wait(), submitted.output.strip().endswith("3")) == (0, True), submitted.output
