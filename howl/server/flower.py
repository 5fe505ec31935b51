"""Flower with HOWL's settings: nobody gets in without a password, and its state survives a restart."""

import hmac
import logging
import os
import signal
import time
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from flower import command, urls
from flower.app import Flower
from flower.options import DEFAULT_CONFIG_FILE, options
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import PeriodicCallback
from tornado.options import Error as WrongOption
from tornado.web import RedirectHandler, RequestHandler, stream_request_body

from howl.config import LOOPBACK_HOSTS
from howl.errors import SettingsError

logger = logging.getLogger(__name__)

#: HOWL's defaults where they differ from Flower's; FLOWER_… variables and options override them.
DEFAULTS = {
    # HOWL's workers send their events over NATS; Celery's own way costs a distant worker a round trip for each.
    "enable_events": False,
    # Flower's default of 100,000 takes 600 MB, and 3 s for each save, during which it answers nobody (measured).
    "max_tasks": 10_000,
    # Milliseconds of state that a killed Flower loses.
    "state_save_interval": 60_000,
    # Seconds after which a worker that is gone is forgotten: HOWL's workers are short-lived.
    "purge_offline_workers": 3600,
    # Flower's default columns, and the result.
    "tasks_columns": "name,uuid,state,result,received,runtime,worker",
    # Logging is configured by the caller; tornado would add its own handlers.
    "logging": "none",
}
#: Options that everybody on the machine would see in the process list.
SECRETS = ("basic_auth", "cookie_secret", "oauth2_secret")
#: Maximum seconds between two checks for workers to forget.
LOOK = 60
#: The warning that Flower logs four times at its start and when it inspects no workers.
NOBODY_ANSWERS = "Inspect method %s failed"
#: HOWL's own events, because of which Celery would show a task in state LOG, even after its end.
NO_STATES = ("task-progress", "task-log")


@dataclass(frozen=True, kw_only=True)
class House:
    """Flower's settings under HOWL; they override Flower's own options, variables and configuration file."""

    #: `user:password` of each user who may log in, at least one.
    credentials: tuple[str, ...] = field(repr=False)
    #: A folder used by Flower alone.
    folder: Path
    address: str
    #: 0: any free port.
    port: int
    #: Path prefix of all addresses, for a proxy; empty: none.
    url_prefix: str = ""
    #: Whether to refuse every button and every call that changes something.
    read_only: bool = False

    def options(self) -> dict[str, Any]:
        """Return them under Flower's option names."""
        return {
            "basic_auth": list(self.credentials),
            "persistent": True,
            "db": str(self.folder / "state"),
            "address": self.address,
            "port": self.port,
            "url_prefix": self.url_prefix.strip("/") or None,
            "read_only": self.read_only,
        }


def run(app: Celery, house: House, words: Sequence[str], when_up: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `words` are more of Flower's own options, `when_up` is called with the address.

    Raises SettingsError for an option that Flower does not know or that may not be given this way, and if it cannot
    listen there.
    """
    _configure(house, words)
    # Flower keeps its state as a pickle: whoever can write to it runs code here.
    os.umask(0o077)
    house.folder.mkdir(parents=True, exist_ok=True)
    house.folder.chmod(0o700)
    flower = Guarded(capp=app, options=options, **urls.settings)
    flower.events.on_event = partial(_pass_on, flower.events.on_event)
    logging.getLogger("flower.inspector").addFilter(lambda record: record.msg != NOBODY_ANSWERS)
    forgetting = PeriodicCallback(flower.forget_the_dead, 1000 * min(LOOK, max(1, options.purge_offline_workers)))
    url = _url(house, _listen(flower, house))
    for number in (signal.SIGINT, signal.SIGTERM):
        flower.io_loop.asyncio_loop.add_signal_handler(number, flower.io_loop.stop)
    when_up(url)
    forgetting.start()
    try:
        flower.start()
    finally:
        flower.stop()


def _configure(house: House, words: Sequence[str]) -> None:
    named = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in words}
    if secret := named.intersection(SECRETS):
        name = f"FLOWER_{secret.pop().upper()}"
        raise SettingsError(f"Everybody on this machine would see it in the command line: set {name} instead.")
    if ours := named.intersection(house.options()):
        raise SettingsError(f"`howl flower` itself decides {', '.join(sorted(ours))}: see `howl flower --help`.")
    try:
        _read_options(words)
    except (ValueError, WrongOption) as error:
        raise SettingsError(f"Flower's own options are not as they should be: {error}.") from error
    _set(house.options())
    command.extract_settings()


def _read_options(words: Sequence[str]) -> None:
    """Read options as Flower does, but refuse unknown ones, and run no file of the current folder unasked."""
    _set(DEFAULTS)
    command.apply_env_options()
    strangers = options.parse_command_line(["howl flower", *words])
    if strangers:
        raise WrongOption(f"{strangers[0]!r} is none (write --name=value)")
    if options.conf != DEFAULT_CONFIG_FILE:
        options.parse_config_file(options.conf)


def _set(wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        setattr(options, name, value)


def _pass_on(hear: Callable[[dict[str, Any]], None], event: dict[str, Any]) -> None:
    if event.get("type") not in NO_STATES:
        hear(event)


def _listen(flower: Flower, house: House) -> int | None:
    try:
        port: int | None = flower.start_http_server()
    except OSError as error:
        raise SettingsError(
            f"Flower cannot listen on {house.address}, port {house.port} ({error.strerror}): choose another."
        ) from error
    if house.address not in LOOPBACK_HOSTS and not flower.ssl_options:
        logger.warning("Passwords reach %s in the clear: let nobody in but through a proxy that speaks TLS, or ssh -L.",
                       house.address)  # fmt: skip
    return port


def _url(house: House, port: int | None) -> str:
    scheme = "https" if "ssl_options" in urls.settings else "http"
    host = f"[{house.address}]" if ":" in house.address else house.address
    return f"{scheme}://{host}:{port}/" + (f"{options.url_prefix}/" if options.url_prefix else "")


class Guarded(Flower):
    """Asks for the password before it looks at the path: Flower's own metrics and static files are open to all."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if not self._is_health_check(request) and not _may_enter(request, self.options.basic_auth):
            return self.get_handler_delegate(request, Doorkeeper)
        if self.options.url_prefix and request.path == f"/{self.options.url_prefix}":
            return self.get_handler_delegate(request, RedirectHandler, {"url": f"{request.path}/", "permanent": False})
        return super().find_handler(request, **kwargs)

    def forget_the_dead(self) -> None:
        """Forget workers that are gone: Flower's own option only hides them on one page, and keeps them elsewhere."""
        state, latest = self.events.state, time.time() - self.options.purge_offline_workers
        for name in {*state.workers, *state.counter, *self.workers}:
            worker = state.workers.get(name)
            if (worker is None or not worker.alive) and self._last_sign(worker, name) < latest:
                for known in (state.workers, state.counter, self.workers):
                    known.pop(name, None)

    def _last_sign(self, worker: Any, name: str) -> float:
        """Return when it was last heard of; 0 if it went offline and has not answered since Flower started."""
        return max([*(worker.heartbeats if worker else ()), self.workers.get(name, {}).get("timestamp", 0)])

    def _is_health_check(self, request: HTTPServerRequest) -> bool:
        """Let a container check itself."""
        prefix = f"/{self.options.url_prefix}" if self.options.url_prefix else ""
        return request.path == f"{prefix}/healthcheck" and request.remote_ip in LOOPBACK_HOSTS


def _may_enter(request: HTTPServerRequest, credentials: Sequence[str]) -> bool:
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        given = b64decode(encoded)
    except (NotBase64, ValueError):
        return False
    return kind == "Basic" and any([hmac.compare_digest(known.encode(), given) for known in credentials])  # noqa: C419  # compare with all: the time taken reveals nothing


@stream_request_body  # the body of an unauthenticated request is not kept
class Doorkeeper(RequestHandler):
    """Refuses requests."""

    def check_xsrf_cookie(self) -> None:
        """Do nothing: no action follows."""

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Connection", "close")  # as tornado does when it answers before the end of the request
        self.finish("Log in as FLOWER_BASIC_AUTH says.\n")

    def data_received(self, chunk: bytes) -> None:
        """Discard the body."""
