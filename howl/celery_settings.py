"""The part of a Celery application's configuration that HOWL decides, overriding every other source."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery.app import utils
from kombu.entity import Exchange, Queue

from howl.config import Settings, load_settings
from howl.connections.redis import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from howl.connections.tls import redis_options
from howl.errors import SettingsError

#: Broker URL for an application that runs its tasks eagerly, as in its own tests, and has no server.
NOWHERE = "redis://nowhere.invalid"
#: Settings that do not depend on the servers.
FIXED: dict[str, Any] = {
    # Settings that would lead elsewhere than the URL.
    **dict.fromkeys(
        ("broker_read_url", "broker_write_url", "broker_user", "broker_password", "broker_vhost", "broker_port",
         "broker_login_method", "broker_failover_strategy")
    ),
    "broker_transport": "howl.broker.transport:Transport",
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": False,
    # A worker survives an absent Redis; its deadline, not a count of attempts, ends its waiting.
    "broker_connection_max_retries": None,
    "result_backend": "howl.backend:HowlBackend",
    "result_backend_always_retry": True,
    "result_backend_max_retries": 40,
    "accept_content": ["json"],
    "result_accept_content": None,
    "task_serializer": "json",
    "result_serializer": "json",
    "result_extended": True,
    "task_track_started": True,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}  # fmt: skip
#: Defaults where the application sets nothing: no task is acknowledged before it has ended.
PREFERRED = {"task_acks_late": True, "task_reject_on_worker_lost": True}
#: Settings that are refused, not silently overridden: what was sent would be refused by its reader.
SERIALIZERS = ("task_serializer", "result_serializer")


class Configuration(utils.Settings):
    """Celery's settings with HOWL's broker and backend: Celery's own look at the environment first."""

    @property
    def broker_url(self) -> Any:
        return self["broker_url"]

    broker_read_url = broker_write_url = broker_url

    @property
    def result_backend(self) -> Any:
        return self["result_backend"]


class Decided(Mapping[str, Any]):
    """Settings that override an application's; those that depend on the servers are computed when needed."""

    def __init__(self, settings: Settings | None, conf: utils.Settings) -> None:
        self._settings = settings
        self._conf = conf
        self._known = dict(FIXED)

    def __getitem__(self, key: str) -> Any:
        """Return a setting; raises SettingsError, such as NotConfigured where no Redis is known, at every try."""
        if key in self._known:
            return self._known[key]
        if key not in FOUND_OUT:
            raise KeyError(key)
        self._settings = self._settings or load_settings()
        found = FOUND_OUT[key](self._settings, self)
        if key not in ADDED_TO:  # an application may still add to those
            self._known[key] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter((*FIXED, *FOUND_OUT))

    def __len__(self) -> int:
        return len(FIXED) + len(FOUND_OUT)

    def theirs(self, key: str) -> Any:
        """Return the application's own value."""
        return _said(self._conf, _theirs(self._conf)).get(key)


def decide(conf: utils.Settings, settings: Settings | None) -> None:
    """Put HOWL's values first in a configuration that has been read; a second call does so for other settings.

    Without settings, they are loaded when the first one is needed.
    """
    conf.maps[:] = _theirs(conf)
    conf.maps.insert(0, Decided(settings, conf))
    conf.maps.insert(-1, PREFERRED)
    look_here_first(conf)


def look_here_first(conf: utils.Settings) -> None:
    """Look here before the environment; call it before the configuration's first use, which reads it."""
    object.__setattr__(conf, "__class__", Configuration)  # its own __setattr__ would make a setting of it


def overruled(conf: utils.Settings) -> list[str]:
    """Return the names of an application's overridden settings, but no values, which may be passwords."""
    said = _said(conf, _theirs(conf)[:-1])  # the last map has Celery's defaults
    return sorted(key for key in (*FIXED, *FOUND_OUT) if key not in ADDED_TO and said.get(key, conf[key]) != conf[key])


def _theirs(conf: utils.Settings) -> list[Any]:
    return [each for each in conf.maps if not isinstance(each, Decided) and each is not PREFERRED]


def _said(conf: utils.Settings, maps: list[Any]) -> utils.Settings:
    """Look settings up by all of their names, as Celery's own `value_set_for` does."""
    return utils.Settings({}, maps, conf._keys, conf.prefix)  # noqa: SLF001


def _transport_options(settings: Settings, decided: Decided) -> dict[str, Any]:
    """Return the options of every connection; raises SettingsError if messages would be in a form unread here."""
    for name in SERIALIZERS:
        if (chosen := decided.theirs(name)) != "json":
            raise SettingsError(f"{name} is {chosen!r}, but HOWL's messages and its record are JSON: remove it.")
    return {
        "global_keyprefix": settings.key_prefix,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_keepalive": True,
        # For clients that publish: an absent Redis is reported within a second. Workers wait by their own rules.
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    }


def _broker(settings: Settings, decided: Decided) -> str:
    if settings.redis_url is None and decided.theirs("task_always_eager"):
        return NOWHERE  # Celery makes a producer for eager tasks, but does not connect it
    return settings.redis()


def _queues(settings: Settings, decided: Decided) -> Any:
    if settings.queues:
        return [Queue(name, Exchange(name), routing_key=name) for name in settings.queues]
    return decided.theirs("task_queues")


#: Settings computed from where the servers are, and from this process's own settings.
FOUND_OUT: dict[str, Callable[[Settings, Decided], Any]] = {
    "broker_url": _broker,
    "broker_use_ssl": lambda settings, _: redis_options(settings),
    "broker_transport_options": _transport_options,
    "task_queues": _queues,
    "imports": lambda settings, decided: (*(decided.theirs("imports") or ()), *settings.task_modules),
    "howl": lambda settings, _: settings,
}
#: Settings to which an application's own values are added.
ADDED_TO = ("task_queues", "imports")
