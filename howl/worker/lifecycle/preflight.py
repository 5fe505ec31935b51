"""A worker's first step: check that there are queues to work from, and that it may use them."""

import logging
from typing import Any

import billiard
import redis
from celery import Celery, bootsteps

from howl.broker.namespaces import DEFAULT_USER, user_of
from howl.celery import settings_of, worker_queue
from howl.celery_settings import overruled
from howl.config import Settings
from howl.connections.redis import redis_client, require_redis
from howl.env_file import require_chosen_servers
from howl.errors import NotGranted, SettingsError
from howl.node_names import worker_id_of
from howl.queue_names import require_queue
from howl.worker.lifecycle import environment, limit_commands

logger = logging.getLogger(__name__)

#: Turns off Celery's broadcasts, none of which a worker's credential may send; HOWL's events go over NATS.
BROADCASTS = ("without_heartbeat", "without_gossip", "without_mingle")
#: Modules of the Celery pools that HOWL knows; custom pools may derive from them.
POOLS = ("celery.concurrency.prefork", "celery.concurrency.thread", "celery.concurrency.solo")


class Preflight(bootsteps.Step):
    """The step that ends a worker that cannot use Redis with one clear sentence, not a traceback a minute later."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        _require_pool(parent)
        require_chosen_servers()
        settings = settings_of(parent.app)
        environment.withdraw(settings)  # `howl worker` has done so; `celery -A howl worker` comes here first
        _look_at_what_it_says(parent.app)
        _look_at_its_options(parent, settings)
        for name in parent.app.amqp.queues.consume_from:
            require_queue(name)
        if parent.pool_cls.__module__ == "celery.concurrency.prefork":
            _require_semaphores()
        require_redis(settings)
        limit_commands.install()
        if user_of(settings) != DEFAULT_USER:
            if not settings.nats_url:
                parent.task_events = False
            parent.options |= dict.fromkeys(BROADCASTS, True)
            _look_at_what_is_granted(parent, settings)


def _require_pool(parent: Any) -> None:
    """Raise SettingsError for a pool whose runs nothing here could follow, such as gevent's and eventlet's."""
    kinds = {each.__module__ for each in parent.pool_cls.__mro__}
    if kinds.isdisjoint(POOLS):
        raise SettingsError(
            f"A worker of HOWL runs tasks in processes, in threads or by itself, not in {parent.pool_cls.__module__}: "
            "start it with `--pool threads`, and with as many (`--concurrency 100`) as are to wait at once."
        )
    if POOLS[0] in kinds and parent.pool_start_method != "fork":
        raise SettingsError(
            "A worker's processes find their way back to it by what they inherit, so they are forked: leave out "
            "--pool-start-method (worker_pool_start_method), or start it with `--pool threads`."
        )


def _require_semaphores() -> None:
    """Raise SettingsError unless there are semaphores: a pool of processes cannot be made without them."""
    try:
        billiard.Lock()
    except OSError as error:
        raise SettingsError(
            f"Processes cannot share a lock on this machine ({error.strerror}): see that /dev/shm is there and can be "
            "written, or start the worker with `--pool threads`."
        ) from error


def _look_at_what_it_says(app: Celery) -> None:
    """Log which of an application's own settings do not count; raise SettingsError for a task that cannot be run."""
    if said := overruled(app.conf):
        logger.info("Decided by HOWL, whatever the application says (docs/celery.md): %s.", ", ".join(said))
    for task in app.tasks.values():
        if task.serializer not in (None, "json"):
            raise SettingsError(
                f"The task {task.name} is sent as {task.serializer}, but HOWL's messages and its record are JSON: "
                "remove its serializer=."
            )


def _look_at_its_options(parent: Any, settings: Settings) -> None:
    """Log which options of the command line have no effect."""
    without_effect = {
        "--prefetch-multiplier": parent.prefetch_multiplier != 1,
        "--heartbeat-interval": settings.nats_url and parent.options.get("heartbeat_interval"),
    }
    if names := [name for name, given in without_effect.items() if given]:
        logger.warning("Of no effect with HOWL (docs/celery.md): %s.", ", ".join(names))


def _look_at_what_is_granted(parent: Any, settings: Settings) -> None:
    """Raise NotGranted for a queue that was asked for; tasks assigned to this worker by name are optional."""
    own = worker_queue(worker_id_of(parent.hostname)).name
    refused = _refused(settings, sorted({*parent.app.amqp.queues.consume_from, own}))
    if own in refused:
        logger.warning("Redis user %s does not reach %s: no task can be assigned to this worker by its name.",
                       user_of(settings), own)  # fmt: skip
        parent.howl_unassignable = True
        refused.remove(own)
    if refused:
        raise NotGranted(
            f"Redis user {user_of(settings)} does not reach {', '.join(refused)}: name other queues with --queues, "
            "or have these granted."
        )


def _refused(settings: Settings, names: list[str]) -> list[str]:
    refused = []
    with redis_client(settings, timeout=5) as client:
        for name in names:
            try:
                client.llen(settings.key(name))
            except redis.exceptions.NoPermissionError:
                refused.append(name)
    return refused
