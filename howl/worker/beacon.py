"""Presence over NATS: a worker says that it is there, still there, and leaving. No correctness rests on it."""

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
from typing import Any

import nats
from celery import bootsteps
from celery.signals import worker_ready, worker_shutdown
from celery.worker import state
from nats.aio.client import Client
from nats.errors import Error as NatsError

import howl
from howl.tls import nats_options, reason
from howl.worker.identity import Identity

logger = logging.getLogger(__name__)

#: Seconds to wait for NATS to accept a connection, and to take the goodbye of a worker that leaves.
CONNECT_TIMEOUT = 5
GOODBYE_TIMEOUT = 3


class Beacon(bootsteps.Step):
    """Starts when the worker consumes, ends when its last task has ended."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.identity = Identity(parent)
        self.announcer: Announcer | None = None
        if self.identity.settings.nats_url:
            # Celery keeps weak references to receivers and steps alike; the worker holds this one.
            parent.howl_beacon = self
            worker_ready.connect(self._begin)
            worker_shutdown.connect(self._end)
        else:
            logger.warning("No NATS is configured: this worker will not show in the workers table.")

    def _begin(self, **_: Any) -> None:
        if self.announcer is None:  # a consumer that reconnects is ready again
            self.announcer = Announcer(self.identity)
            self.announcer.start()

    def _end(self, **_: Any) -> None:
        if self.announcer is not None:
            self.announcer.stop()


class Announcer(threading.Thread):
    """One connection in a loop of its own: the worker's never waits for NATS."""

    def __init__(self, identity: Identity) -> None:
        super().__init__(name="howl-beacon", daemon=True)
        self.identity = identity
        self.settings = identity.settings
        self.loop = asyncio.new_event_loop()
        self.leaving = asyncio.Event()

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self._announce())
        finally:
            self.loop.close()

    def stop(self) -> None:
        """Say goodbye; waits for it a few seconds at most."""
        if self.is_alive():
            self.loop.call_soon_threadsafe(self.leaving.set)
            self.join(CONNECT_TIMEOUT + GOODBYE_TIMEOUT)

    async def _announce(self) -> None:
        client = await self._connect()
        if client is None:
            return
        await self._say(client, "worker-online")
        while not await self._left_within(self.settings.heartbeat_interval):
            await self._say(client, "worker-heartbeat")
        await self._say(client, "worker-offline")
        await self._close(client)

    async def _connect(self) -> Client | None:
        """Try until NATS answers or the worker leaves."""
        wait = random.uniform(1, 3)  # noqa: S311  # jitter, no secret
        while not self.leaving.is_set():
            try:
                return await nats.connect(
                    self.settings.nats(),
                    name=self.identity.node_name,
                    connect_timeout=CONNECT_TIMEOUT,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=wait,
                    error_cb=self._complain,
                    **nats_options(self.settings),
                )
            except (NatsError, OSError, TimeoutError) as error:
                await self._complain(error)
                await self._left_within(random.uniform(1, 5))  # noqa: S311
        return None

    async def _complain(self, error: Exception) -> None:
        logger.warning("NATS cannot be used (%s): tasks go on, this worker may show as lost.", reason(error))

    async def _left_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.leaving.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _say(self, client: Client, kind: str) -> None:
        subject = f"{self.settings.subject_prefix}.events.{subject_token(self.identity.worker_id)}.{kind}"
        try:
            await client.publish(subject, json.dumps(self._event(kind)).encode())
        except NatsError as error:
            await self._complain(error)

    async def _close(self, client: Client) -> None:
        try:
            await client.flush(GOODBYE_TIMEOUT)
            await client.close()
        except (NatsError, OSError, TimeoutError) as error:
            await self._complain(error)

    def _event(self, kind: str) -> dict[str, Any]:
        """Celery's own event, with what HOWL adds under one name; a heartbeat alone can register a worker."""
        described = self.identity.describe()
        return {
            "type": kind,
            "hostname": self.identity.node_name,
            "timestamp": time.time(),
            "utcoffset": time.timezone // 3600,
            "pid": os.getpid(),
            "freq": self.settings.heartbeat_interval,
            "sw_ident": "howl",
            "sw_ver": howl.__version__,
            "sw_sys": os.uname().sysname,
            "active": len(state.active_requests),
            "processed": state.all_total_count[0],
            "worker": described | ({"status": "offline"} if kind == "worker-offline" else {}),
        }


def subject_token(worker_id: str) -> str:
    """A worker's id as one token of a NATS subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", worker_id)
