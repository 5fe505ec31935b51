"""HOWL as a Celery application, or within one: `celery -A howl …`, `from howl import app`, `howl.install(app)`."""

import importlib
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.utils import find_app
from celery.signals import celeryd_after_setup
from kombu.entity import Exchange, Queue
from kombu.utils.imports import symbol_by_name

from howl import error_callbacks
from howl.celery_settings import decide, look_here_first
from howl.config import Settings, load_settings
from howl.errors import NotConfigured, SettingsError
from howl.node_names import worker_id_of
from workers import TASK_MODULES

if TYPE_CHECKING:
    #: The application that HOWL_APP names, or else HOWL's own; made at first use.
    app: Celery

#: Steps that a HOWL worker adds to Celery's, by blueprint; given by name, because only a worker imports them.
STEPS = {
    "worker": ("lifecycle.preflight:Preflight", "results.outbox:Outbox", "events.step:EventsStep",
               "lifecycle.shutdown:Leaving", "lifecycle.remote_control:Orders", "lifecycle.job_summary:Summary"),
    "consumer": ("events.dispatcher:Events", "consumer.adapter:Claims", "lifecycle.healthcheck:Pulse"),
}  # fmt: skip
#: Celery's remote control, and HOWL's, which replaces it.
CELERYS_CONTROL, CONTROL = Celery.control_cls, "howl.broker.remote_control:Control"
#: Class that makes messages, and refuses ids that cannot be recorded.
AMQP = "howl.broker.publishing:AMQP"


def install(app: Celery, settings: Settings | None = None) -> Celery:
    """Install HOWL in any Celery application, and return it; a second call changes its settings.

    Its broker, its result backend and its workers' steps are HOWL's from then on; docs/celery.md says which of its
    configuration is kept. Without settings, they are loaded when the first one is needed. Raises SettingsError for an
    application with a remote control of its own.
    """
    if app.control_cls not in (CELERYS_CONTROL, CONTROL):
        raise SettingsError(f"{app.main} has a remote control of its own, and HOWL needs its own: remove control=.")
    app.control_cls = CONTROL
    app.amqp_cls = AMQP
    for made in ("control", "amqp"):  # cached by an earlier access
        app.__dict__.pop(made, None)
    app.backend_cls = None  # it would take precedence over the configuration
    for place, names in STEPS.items():
        app.steps[place].update(f"howl.worker.{name}" for name in names)
    app.on_after_configure.disconnect(dispatch_uid="howl")
    app.on_after_configure.connect(lambda source, **_: decide(source, settings), weak=False, dispatch_uid="howl")
    look_here_first(app.conf)
    error_callbacks.install(app)
    if app.configured:
        decide(app.conf, settings)
    return app


def create_app(settings: Settings | None = None) -> Celery:
    """Make HOWL's own application with these settings; without any, they are loaded when the first one is needed."""
    return install(Celery("howl", loader=_loader, include=TASK_MODULES, set_as_current=settings is None), settings)


def _loader(app: Celery) -> Any:
    """Make Celery's loader here: given its name, Celery would import it with the working directory first."""
    return symbol_by_name("howl.worker.lifecycle.loader:Loader")(app=app)


def application(settings: Settings) -> Celery:
    """Return the application that HOWL_APP names, with these settings and its tasks; or else HOWL's own.

    Raises NotConfigured if there is no such application, or HOWL is not installed in it.
    """
    if settings.app is None:
        return create_app(settings)
    found = _find(settings.app)
    if f"howl.worker.{STEPS['worker'][0]}" not in found.steps["worker"]:
        raise NotConfigured(f"{settings.app} (HOWL_APP) is not HOWL's yet: write `howl.install(app)` where it is made.")
    install(found, settings)
    # Import now: modules may read variables that are gone from the environment once a worker has started.
    found.loader.import_default_modules()
    return found


def _find(name: str) -> Celery:
    """Find it as `celery -A` does, but without searching the working directory first."""
    try:
        found = find_app(name, imp=importlib.import_module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name.partition(':')[0]}.".startswith(f"{error.name}."):
            raise  # a module that it imports itself
        raise NotConfigured(
            f"There is no module {error.name} for the application {name} (HOWL_APP): say where it is, "
            "`PYTHONPATH=/folder/of/it howl …`."
        ) from None
    except AttributeError:
        found = None
    if not isinstance(found, Celery):
        raise NotConfigured(f"{name} is no Celery application (HOWL_APP): write module:name, as in proj.celery:app.")
    return found


def settings_of(app: Celery) -> Settings:
    """Return the settings an application was configured with."""
    settings: Settings = app.conf["howl"]
    return settings


def worker_queue(worker_id: str) -> Queue:
    """Return the queue that only one worker consumes, on the nameless exchange, so that no binding outlives it."""
    name = f"worker.{worker_id}"
    return Queue(name, Exchange(""), routing_key=name)


@celeryd_after_setup.connect
def _consume_own_queue(instance: Any, **_: Any) -> None:
    """Have each HOWL worker also consume its own queue, unless its credential does not reach that."""
    if "howl" in instance.app.conf and not getattr(instance, "howl_unassignable", False):
        queue = worker_queue(worker_id_of(instance.hostname))
        instance.app.amqp.queues.select_add(queue)
        # Celery puts a queue without an exchange on its default one, where its binding would outlive the worker.
        queue.exchange = Exchange("")


def __getattr__(name: str) -> Any:
    """Make the application at first use: importing this module to install HOWL in another needs none."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        settings = load_settings()
    except SettingsError:
        settings = None  # reported where they are needed: here, `celery -A howl` would bury it in a traceback
    made = globals()["app"] = application(settings) if settings and settings.app else create_app()
    return made
