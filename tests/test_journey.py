"""The whole way: an MCP client submits, two burst workers do the work, `psql` finds it, the workers are gone."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from mcp import Client, StdioServerParameters

from howl.config import Settings
from howl.embedded import binaries
from tests.helpers.support import PATIENCE, Process, eventually
from tests.mcp_shim.test_tools import HOWL, answer

TASKS = 20

RECORD = """
SELECT t.worker_id, t.status, t.attempts, t.result->'stdout', string_agg(e.kind, ' ' ORDER BY e.event_id),
       min(e.data->>'pid')
FROM tasks t JOIN task_events e USING (task_id)
WHERE e.source LIKE 'outcome:%' GROUP BY t.task_id ORDER BY t.queued_at
"""


def test_work_submitted_over_mcp_is_done_by_a_burst_recorded_once_and_outlives_it(
    server: Process, start: Callable[..., Process], env: dict[str, str], settings: Settings
) -> None:
    burst = start("burst", "start", "--local", "--workers", "2", "--runtime", "2m", "--concurrency", "1", env=env)
    eventually(lambda: "2 of 2 workers registered" in burst.output or burst.popen.poll() is not None)
    assert burst.popen.poll() is None, burst.output

    reports = asyncio.run(submit_and_wait(StdioServerParameters(command=HOWL, args=["mcp"], env=env)))
    assert [report["status"] for report in reports] == ["succeeded"] * TASKS
    assert [report["result"]["stdout"] for report in reports] == [f"answer {number}\n" for number in range(TASKS)]

    burst.signal(signal.SIGINT)
    assert burst.wait() == 0, burst.output
    eventually(lambda: psql(settings, "SELECT status FROM workers") == [["offline"], ["offline"]])

    recorded = psql(settings, RECORD)
    assert [row[1:4] for row in recorded] == [["succeeded", "1", f'"answer {number}\\n"'] for number in range(TASKS)]
    # A run shorter than a quarter of a second is told by its end alone.
    assert {row[4].removeprefix("started ") for row in recorded} == {"succeeded"}
    # Each worker's one pool process did its part, and this process none.
    assert len({row[0] for row in recorded}) == len({row[5] for row in recorded}) == 2
    assert str(os.getpid()) not in {row[5] for row in recorded}


async def submit_and_wait(howl_mcp: StdioServerParameters) -> list[dict[str, Any]]:
    """What get_task says of each task at its end; the first two are for one worker each, by name."""
    async with Client(howl_mcp, read_timeout_seconds=60) as client:
        crew = answer(await client.call_tool("list_workers", {}))["workers"]
        ids = []
        for number in range(TASKS):
            named = {"worker_id": crew[number]["worker_id"]} if number < len(crew) else {}
            argv = {"argv": ["echo", f"answer {number}"]}
            task = await client.call_tool("submit_task", {"name": "command.run", "arguments": argv, **named})
            ids.append(answer(task)["task_id"])
        waits = (client.call_tool("get_task", {"task_id": one, "wait_seconds": PATIENCE}) for one in ids)
        return [answer(report) for report in await asyncio.gather(*waits)]


def psql(settings: Settings, statement: str) -> list[list[str]]:
    """Rows as PostgreSQL's own client reads them."""
    place = urlsplit(settings.database())
    line = [binaries.psql(), "-X", "-w", "-A", "-t", "-h", place.hostname, "-p", str(place.port), "-U", place.username]
    done = subprocess.run(
        [*line, "-d", place.path[1:], "-c", statement],
        env=os.environ | {"PGPASSWORD": place.password}, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return [row.split("|") for row in done.stdout.splitlines()]
