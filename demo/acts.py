"""The demo's acts, in order: servers, a burst, work, the burst's end; then the servers restarted, and their data."""

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from demo import record
from demo.assistant import Assistant, assistant
from demo.bursts import WORKERS, Bursts
from demo.examination import examine
from demo.pages import Site
from demo.processes import HOWL, Command, command, environment_of, output_of
from demo.screen import Screen
from demo.work import PICTURE, ROOT, Work, planned
from howl.embedded.stack import Stack
from howl.errors import DemoFailed
from howl.outcomes import FINAL_STATUSES
from howl.server import migrate
from workers.browser import NAME

Checks = Iterable[Callable[[], None]]

#: Seconds for the server and the workers to be up, and after a burst's runtime for its workers to be offline.
UP_PATIENCE = 60.0
GOODBYE_PATIENCE = 10.0
#: Seconds between two polls.
LOOK = 0.3
#: The signature of a PNG (ISO 15948, 5.2).
PNG = b"\x89PNG\r\n\x1a\n"
#: Fewest tasks that the demo promises to submit.
FEWEST_TASKS = 40


class Demo:
    """A demo in a state folder of its own, which holds the nonce file."""

    def __init__(self, home: Path, nonce: Path, screen: Screen) -> None:
        self.home = home
        self.nonce = nonce
        self.screen = screen
        self.site = Site(ROOT, nonce.read_bytes())
        #: The tasks by id, once submitted.
        self.work: dict[str, Work] = {}
        #: The screenshot of a worker's browser, once it is fetched from the server's object store.
        self.picture: Path | None = None

    def play(self) -> None:
        """Play all acts; raises HowlError if one cannot go on."""
        self.screen.act("Servers, on free ports of 127.0.0.1")
        with Stack(self.home) as stack, self._server(stack) as server, self.site.served():
            asyncio.run(self._work(stack, server))
        self.screen.act("Everything is stopped, and the servers are started again")
        with Stack(self.home) as stack:
            self.screen.say(_ports(stack))
            self._read_record(record.Psql(stack.urls.database_url))

    @contextmanager
    def _server(self, stack: Stack) -> Iterator[Command]:
        """Migrate the database and yield `howl server` once it is up."""
        self.screen.say(_ports(stack))
        migrate.upgrade(stack.urls.database_url)
        with command("server", log=self.home / "server.log") as server:
            _wait(lambda: "server is up" in server.output(), server.check)
            self.screen.say("The database has its tables; `howl server` records, listens and keeps.")
            yield server

    # --- while the first servers run ---------------------------------------------------------------------------

    async def _work(self, stack: Stack, server: Command) -> None:
        with Bursts(self.home) as bursts:
            self.screen.act("A burst of two workers")
            self.screen.say(bursts.start())
            try:
                async with assistant(self.home / "mcp.log") as helper:
                    workers = await self._registered(helper, bursts)
                    self._check_secrets(workers, stack)
                    await self._see_work(helper, bursts, workers, (stack.check, server.check, bursts.check))
            except asyncio.CancelledError:
                self.screen.say("Interrupted: all that runs is being ended.")
                raise

    async def _see_work(self, helper: Assistant, bursts: Bursts, workers: list[str], checks: Checks) -> None:
        self.screen.act("Work, submitted to `howl mcp` by an MCP client")
        await self._submit(helper, workers)
        await self._see_done(helper, bursts, checks)
        await self._examine(helper)
        self.screen.act("The burst ends by itself")
        await self._see_gone(helper, bursts)

    async def _registered(self, helper: Assistant, bursts: Bursts) -> list[str]:
        deadline = time.monotonic() + UP_PATIENCE
        while len(active := (await helper.call("list_workers"))["workers"]) < WORKERS:
            bursts.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"The workers did not register within {UP_PATIENCE:g} s: {bursts.latest.tail()}")
            await asyncio.sleep(LOOK)
        names = sorted(worker["worker_id"] for worker in active)
        self.screen.say(f"{' and '.join(names)} have registered over NATS.")
        return names

    def _check_secrets(self, workers: list[str], stack: Stack) -> None:
        if sys.platform != "linux":
            return  # other systems do not show a process's variables
        shown = [environment_of(worker) for worker in workers]
        urls = (stack.urls.redis_url, stack.urls.nats_url, stack.urls.database_url)
        secret = ("redis://", "nats://", "postgresql://", *(str(urlsplit(url).password) for url in urls))
        self.screen.check(
            "no program beside them finds a server's address or password in their environment",
            not any(word in one for one in shown for word in secret),
        )

    async def _submit(self, helper: Assistant, workers: list[str]) -> None:
        digest = hashlib.sha256(self.nonce.read_bytes()).hexdigest()
        plan = planned(self.nonce, digest, self.site.digests(), f"{self.site.address}/", workers)
        for number, item in enumerate(plan):
            task = await helper.call(item.tool, **item.arguments, idempotency_key=f"demo-{number}")
            self.work[task["task_id"]] = item
        again = await helper.call(plan[0].tool, **plan[0].arguments, idempotency_key="demo-0")
        kinds = dict.fromkeys(item.kind for item in plan)
        counted = ", ".join(f"{sum(item.kind == kind for item in plan)} {kind}" for kind in kinds)
        self.screen.say(f"{len(self.work)} tasks submitted: {counted}.")
        self.screen.check(
            f"at least {FEWEST_TASKS} tasks; one submitted twice under the same key is still one task",
            len(self.work) == len(plan) >= FEWEST_TASKS and again["task_id"] in self.work,
        )

    async def _see_done(self, helper: Assistant, bursts: Bursts, checks: Checks) -> None:
        """Wait until every task has ended; start another burst if one ends before that."""
        with self.screen.progress(self.work) as show:
            while True:
                tasks = await self._tasks(helper)
                show(tasks)
                if all(tasks[task_id]["status"] in FINAL_STATUSES for task_id in self.work):
                    break
                for check in checks:
                    check()
                if not bursts.latest.running():
                    self.screen.say("The burst's time is up, and work is left: another burst takes it.")
                    bursts.start()
                await asyncio.sleep(LOOK)
        self.screen.say(f"All have ended, run by {len({task['worker_id'] for task in tasks.values()})} workers.")

    async def _tasks(self, helper: Assistant) -> dict[str, Any]:
        """Return all tasks by id, from `list_tasks` page by page."""
        page = await helper.call("list_tasks", limit=200)
        tasks = page["tasks"]
        while "next" in page:
            page = await helper.call("list_tasks", limit=200, after=page["next"])
            tasks += page["tasks"]
        return {task["task_id"]: task for task in tasks}

    async def _examine(self, helper: Assistant) -> None:
        """Check what each task returned."""
        reports = {task_id: await helper.call("get_task", task_id=task_id, wait_seconds=5) for task_id in self.work}
        examine(self.work, reports, self.screen)
        self._fetch_picture()

    def _fetch_picture(self) -> None:
        taken = [task_id for task_id, item in self.work.items() if item.kind == PICTURE]
        if not taken:
            self.screen.say("No screenshot: it takes Chrome or Chromium on this machine.")
            return
        output_of(HOWL, "artifacts", "get", taken[0], NAME, "--to", str(ROOT), "--force")
        self.picture = ROOT / NAME
        self.screen.check("the screenshot was kept, and is a picture", self.picture.read_bytes().startswith(PNG))

    async def _see_gone(self, helper: Assistant, bursts: Bursts) -> None:
        deadline = time.monotonic() + bursts.runtime + GOODBYE_PATIENCE
        while (burst := bursts.latest).running() or await self._present(helper):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK)
        self.screen.say("Its runtime is over.")
        self.screen.show("\n".join(burst.output().splitlines()[-WORKERS - 1 :]))
        self.screen.check("it ended without being told to, with exit status 0", burst.popen.poll() == 0, burst.tail())
        present = await self._present(helper)
        self.screen.check("its workers said goodbye: they are offline, not lost", not present, present)
        overview = (await helper.call("get_analytics", entity_type="overview"))["rows"][0]
        self.screen.check("analytics agree", overview["tasks"] == {"succeeded": len(self.work)}, overview["tasks"])
        self.screen.say(f"All of this through one MCP client: {helper.told()}.")

    async def _present(self, helper: Assistant) -> list[str]:
        """List the workers that are not offline, with their status."""
        workers = (await helper.call("list_workers", status=None))["workers"]
        return [f"{worker['worker_id']} is {worker['status']}" for worker in workers if worker["status"] != "offline"]

    # --- after the restart -------------------------------------------------------------------------------------

    def _read_record(self, psql: record.Psql) -> None:
        for statement in (record.TASKS, record.WORKERS):
            self.screen.show(psql.table(statement))
        entries = psql.entries()
        expected = sorted((task_id, item.digest) for task_id, item in self.work.items())
        check = self.screen.check
        check(
            f"psql: {len(entries)} tasks, those submitted and no others, with the digests they returned",
            sorted((entry.task_id, entry.digest) for entry in entries) == expected,
        )
        twice = [entry for entry in entries if (entry.status, entry.ends) != ("succeeded", 1)]
        check("psql: each is recorded as succeeded, and has one event that says so", not twice, twice)
        statuses = psql.worker_statuses()
        check("psql: the workers are still known, and offline", set(statuses) == {"offline"}, statuses)
        self.screen.act("howl analytics worker")
        self.screen.show(output_of(HOWL, "analytics", "worker"))


def _ports(stack: Stack) -> str:
    return f"Redis (Valkey) on {stack.redis.port}, NATS on {stack.nats.port}, PostgreSQL on {stack.postgres.port}."


def _wait(look: Callable[[], bool], check: Callable[[], None]) -> None:
    deadline = time.monotonic() + UP_PATIENCE
    while not look():
        check()
        if time.monotonic() > deadline:
            raise DemoFailed(f"`howl server` was not up within {UP_PATIENCE:g} s.")
        time.sleep(LOOK / 6)
