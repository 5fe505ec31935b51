"""The Celery application and its configuration: `celery -A howl …`, and `from howl import app`."""

import logging
from typing import Any

import celery
from celery import Celery
from celery.signals import celeryd_after_setup
from kombu.entity import Exchange, Queue
from kombu.utils.imports import symbol_by_name

from howl.config import Settings, load_settings
from howl.tls import redis_options
from workers import TASK_MODULES

logger = logging.getLogger(__name__)

#: Seconds to wait for Redis to accept a connection, and for it to answer.
CONNECT_TIMEOUT = 5
ANSWER_TIMEOUT = 30


class Task(celery.Task):
    """Every task's base: its messages are claims."""

    abstract = True
    Request = "howl.worker.request:ClaimedRequest"


def create_app(settings: Settings | None = None) -> Celery:
    """A Celery application on the given settings; without any, they are loaded when the first one is needed."""
    # By name: who runs tasks loads the loader, who sends them the messages' maker, who commands workers the control,
    # a worker all the rest.
    made = Celery(
        "howl",
        loader=_loader,
        amqp="howl.broker.amqp:AMQP",
        control="howl.broker.control:Control",
        task_cls=Task,
        set_as_current=settings is None,
    )
    made.add_defaults(lambda: configuration(settings or load_settings()))
    made.steps["worker"].add("howl.worker.boot:Preflight")
    made.steps["worker"].add("howl.worker.outbox:Outbox")
    made.steps["worker"].add("howl.worker.beacon:Beacon")
    made.steps["worker"].add("howl.worker.leaving:Leaving")
    made.steps["worker"].add("howl.worker.orders:Orders")
    made.steps["worker"].add("howl.worker.summary:Summary")
    made.steps["consumer"].add("howl.worker.dispatcher:Events")
    made.steps["consumer"].add("howl.worker.claims:Claims")
    made.steps["consumer"].add("howl.worker.pulse:Pulse")
    return made


def _loader(app: Celery) -> Any:
    """Celery's loader, made by hand: given its name, Celery would import it with the working directory first."""
    return symbol_by_name("howl.worker.loader:Loader")(app=app)


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's configuration; raises NotConfigured where no Redis is known."""
    return {
        "broker_url": settings.redis(),
        "broker_use_ssl": redis_options(settings),
        "broker_transport": "howl.broker.transport:Transport",
        "broker_transport_options": {
            "global_keyprefix": settings.key_prefix,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_timeout": ANSWER_TIMEOUT,
            "socket_keepalive": True,
            # For clients that publish: an absent Redis is said within a second. Workers wait by their own rules.
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        "broker_connection_retry_on_startup": False,
        # A worker outlives an absent Redis; its deadline, not a count of attempts, ends its patience.
        "broker_connection_max_retries": None,
        "result_backend": "howl.backend:HowlBackend",
        "result_backend_always_retry": True,
        "result_backend_max_retries": 40,
        "imports": (*TASK_MODULES, *settings.task_modules),
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in settings.queues] or None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_extended": True,
        # Nothing is acknowledged that has not ended.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "howl": settings,
    }


def settings_of(app: Celery) -> Settings:
    """The settings an application was configured with."""
    settings: Settings = app.conf["howl"]
    return settings


def worker_queue(worker_id: str) -> Queue:
    """The queue that one worker alone consumes; on the nameless exchange, so that no binding outlives the worker."""
    name = f"worker.{worker_id}"
    return Queue(name, Exchange(""), routing_key=name)


@celeryd_after_setup.connect
def _consume_own_queue(instance: Any, **_: Any) -> None:
    """Every worker of ours also takes what is assigned to it by name, unless its credential does not reach that."""
    if "howl" in instance.app.conf and not getattr(instance, "howl_unassignable", False):
        queue = worker_queue(worker_id_of(instance.hostname))
        instance.app.amqp.queues.select_add(queue)
        # Celery puts a queue without an exchange on its default one, where its binding would outlive the worker.
        queue.exchange = Exchange("")


def worker_id_of(node_name: str) -> str:
    """`celery@github-worker-1` is worker `github-worker-1`."""
    return node_name.partition("@")[2] or node_name


app = create_app()
