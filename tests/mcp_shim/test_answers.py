"""What an MCP client is told and shown: short enough to be read, and with a way to the rest."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.bursts import detached, records
from howl.bursts.request import BurstRequest
from howl.config import Settings
from howl.errors import BurstFailed, DatabaseUnavailable
from howl.mcp_shim import bounds, bursts, tools
from howl.mcp_shim.server import StrictServer, strict_tool
from howl.models import Artifact, Task, TaskEvent, Worker
from tests.mcp_shim.test_tools import LEAVER, _leave, answer, call, listed, refusal, text

#: Characters that clients may take for tokens, of which they read 25,000.
READ = 25_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def shim(settings: Settings) -> StrictServer:
    """The tools, in memory, with the tests' own tasks."""
    told = settings.model_copy(update={"task_modules": ("tests.tasks",)})
    return tools.create_server(lambda: told)


def pages(shim: StrictServer, tool: str, rows: str, **arguments: Any) -> list[dict[str, Any]]:
    """The rows of all pages, each of which must be short."""
    seen: list[dict[str, Any]] = []

    async def read() -> None:
        after = None
        async with Client(shim) as client:
            for _ in range(100):
                result = await client.call_tool(tool, arguments | {"after": after})
                page = answer(result)
                assert json.loads(text(result)) == page
                assert len(text(result)) < READ
                seen.extend(page[rows])
                after = page.get("next")
                if after is None:
                    return
                assert "call again with `after` set to `next`" in page["note"]
        pytest.fail("there is no end of pages")

    asyncio.run(read())
    return seen


# --- what is listed --------------------------------------------------------------------------------------------------


def test_190_tasks_are_shown_page_by_page_each_once(shim: StrictServer, session: Session) -> None:
    told = {"description": "d" * 1000, "error_message": "e" * 1000, "error_type": "ValueError", "name": "n" * 200}
    session.add_all(
        Task(task_id=f"task-{n:03}", queued_at=NOW + timedelta(seconds=n // 3), status="failed", rank=3, **told)
        for n in range(190)
    )
    session.commit()
    newest_first = sorted(range(190), key=lambda n: (-(n // 3), n))
    for limit in (200, 30):
        seen = [task["task_id"] for task in pages(shim, "list_tasks", "tasks", limit=limit)]
        assert seen == [f"task-{n:03}" for n in newest_first]


def test_a_page_goes_on_behind_a_task_that_no_longer_is_what_was_asked_for(
    shim: StrictServer, session: Session
) -> None:
    session.add_all(Task(task_id=f"task-{n}", queued_at=NOW - timedelta(seconds=n)) for n in range(4))
    session.commit()
    first = answer(call(shim, "list_tasks", status="queued", limit=2))
    session.get(Task, first["next"]).status = "cancelled"
    session.commit()
    second = answer(call(shim, "list_tasks", status="queued", limit=2, after=first["next"]))
    assert [task["task_id"] for task in second["tasks"]] == ["task-2", "task-3"]
    assert "next" not in second
    assert "No task 'nobody'" in refusal(call(shim, "list_tasks", after="nobody"))


def test_many_workers_and_workers_with_many_words_are_shown_page_by_page(shim: StrictServer, session: Session) -> None:
    session.add_all(
        Worker(worker_id=f"w{n:03}", tags=["t" * 100] * 900, queues=["q"] * 1000, status=status, last_heartbeat_at=NOW)
        for n, status in enumerate(["active", "lost"] * 15)
    )
    session.commit()
    seen = [worker["worker_id"] for worker in pages(shim, "list_workers", "workers", status=None)]
    assert seen == [f"w{n:03}" for n in (*range(0, 30, 2), *range(1, 30, 2))]
    assert answer(call(shim, "list_workers"))["left_out"] > 0
    assert "no row of it is called so" in refusal(call(shim, "list_workers", after="nobody"))


def test_analytics_of_many_names_and_hours_are_short(shim: StrictServer, session: Session) -> None:
    now = datetime.now(UTC)
    session.add_all(
        Task(task_id=f"t{n}", name=f"a.task.{n:03}", status="succeeded", rank=3, finished_at=now - timedelta(hours=n))
        for n in range(300)
    )
    session.commit()
    seen = [row["name"] for row in pages(shim, "get_analytics", "rows", entity_type="task")]
    assert seen == [f"a.task.{n:03}" for n in range(300)]
    (overview,) = pages(shim, "get_analytics", "rows", entity_type="overview", time_range="400d")
    assert len(overview["throughput"]) + overview["hours_left_out"] == 300


# --- one task --------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(session: Session) -> Task:
    """A task with much of everything."""
    task = Task(
        task_id="large-one", name="tests.echo", status="failed", rank=3, description="d" * 20_000, args=["a" * 50_000],
        result={"stdout": 'a "line"\n' * 3000, "exit_status": 1, **{f"a long name, {n}": "v" * 50 for n in range(300)}},
        traceback="t\n" * 15_000, error_message="e" * 50_000,
    )  # fmt: skip
    session.add(task)
    session.add_all(
        Artifact(
            artifact_id=f"{n:032}", task_id="large-one", name=f"{n:03}-{'f' * 200}", location="a/b",
            media_type="text/plain", size=1, sha256="0" * 64,
        )
        for n in range(150)
    )  # fmt: skip
    session.add_all(TaskEvent(task_id="large-one", kind="log", data={"lines": ["l" * 4000]}) for _ in range(20))
    session.add_all(TaskEvent(task_id="large-one", kind=f"e{n}", data={"x": ["y" * 99] * 9}) for n in range(50))
    session.commit()
    return task


def test_a_task_with_much_of_everything_is_shown_in_short(shim: StrictServer, large: Task) -> None:
    result = call(shim, "get_task", task_id="large-one")
    report = answer(result)
    assert len(text(result)) < READ
    assert report["result"]["exit_status"] == 1
    assert report["result"]["stdout"].startswith('a "line"\na "line"')
    assert "get_task with `part` reads on" in json.dumps(report["result"])
    assert report["events"][-1]["kind"] == "e49"
    counted = {name: len(report[name]) + report["left_out"][name] for name in ("artifacts", "events", "log")}
    assert counted == {"artifacts": 150, "events": 50, "log": 20}


@pytest.mark.parametrize("part", ["result", "traceback", "description", "args", "artifacts", "events", "log"])
def test_a_part_of_a_task_is_read_whole_piece_by_piece(shim: StrictServer, large: Task, part: str) -> None:
    whole, offset = "", 0
    while offset is not None:
        result = call(shim, "get_task", task_id="large-one", part=part, offset=offset)
        assert len(text(result)) < READ
        piece = answer(result)
        whole, offset = whole + piece["text"], piece.get("next_offset")
    if part in ("traceback", "description"):
        assert whole == getattr(large, part)
    elif part in ("result", "args"):
        assert json.loads(whole) == getattr(large, part)
    else:
        assert len(json.loads(whole)) == {"artifacts": 150, "events": 50, "log": 20}[part]


def test_a_file_is_read_whole_piece_by_piece(shim: StrictServer, settings: Settings, session: Session) -> None:
    content = "".join(f"line {n} äöü\n" for n in range(5000))
    _leave(settings, session, "long.txt", content.encode())
    whole, offset = "", 0
    while offset < len(content):
        about, shown = call(shim, "get_artifact", task_id=LEAVER, name="long.txt", offset=offset).content
        assert len(about.text) + len(shown.text) < READ
        whole += shown.text.partition("\n")[2].rpartition("\n")[0]
        offset = len(whole)
        assert (f"get_artifact with offset {offset} reads on" in about.text) == (offset < len(content))
    assert whole == content
    assert "offset must be below" in refusal(call(shim, "get_artifact", task_id=LEAVER, name="long.txt", offset=10**9))


def test_whatever_is_in_it_an_answer_is_within_its_bounds() -> None:
    values: list[Any] = ["\x00" * 50_000, '"\\' * 50_000, ["x"] * 50_000, {str(n): n for n in range(50_000)}, 10**4000]
    values += [[values[:4]], {"a": {"b": values[2], "c": values[3]}}, {"k" * 30_000: 1, "l": 2}]
    for value in values:
        assert bounds.size(bounds.fitted(bounds.shallow(value, 20_000), 10_000)) <= 10_000
    assert bounds.size(bounds.within({str(n): value for n, value in enumerate(values[:5])})) <= READ
    assert bounds.shares([10, 1000, 300], 600) == [10, 295, 295]


# --- what is listed of tools, and taken by them ----------------------------------------------------------------------


def test_the_list_of_tools_is_short_and_says_nothing_twice() -> None:
    documents = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed().values()]
    assert sum(len(json.dumps(document)) for document in documents) < 21_000
    schemas = [json.dumps(document.get("outputSchema", {})) for document in documents]
    assert [schema for schema in schemas if len(schema) > 400 and schemas.count(schema) > 1] == []
    assert listed()["list_tasks"].input_schema["properties"]["limit"]["type"] == "integer"


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("list_tasks", {"limit": "20"}),
        ("list_tasks", {"limit": 20.0}),
        ("submit_task", {"name": "tests.noop", "priority": " 3 ", "time_limit": "1e2", "expires_in": "60.5"}),
        ("submit_task", {"name": "tests.noop", "priority": "null", "wait_seconds": "0"}),
        ("assign_task", {"description": "20", "priority": "0", "wait_seconds": "0.1"}),
        ("get_task", {"task_id": "task-1", "wait_seconds": "0", "offset": "0"}),
    ],
)
def test_numbers_that_a_client_sends_as_text_are_taken(
    shim: StrictServer, session: Session, tool: str, arguments: dict[str, Any]
) -> None:
    session.add(Task(task_id="task-1", status="succeeded", rank=3))
    session.commit()
    answer(call(shim, tool, **arguments))


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("list_tasks", {"limit": "0"}, "limit: Input should be greater than or equal to 1"),
        ("list_tasks", {"limit": "20.5"}, "limit: Input should be a valid integer"),
        ("list_tasks", {"limit": "true"}, "limit: Input should be a valid integer"),
        ("list_tasks", {"limit": "1" * 5000}, "limit: Input should be a valid integer"),
        ("spawn_workers", {"num_workers": "257"}, "num_workers: Input should be less than or equal to 256"),
        ("submit_task", {"name": "tests.noop", "queue": "gpu", "worker_id": "w1"}, "name one of both"),
    ],
)
def test_what_cannot_be_meant_is_refused(shim: StrictServer, tool: str, arguments: dict[str, Any], said: str) -> None:
    assert said in refusal(call(shim, tool, **arguments))


class Heard(BaseModel):
    """What a tool was told."""

    yes: bool
    number: int
    share: float | None


@pytest.mark.parametrize(("yes", "taken"), [("true", True), ("False", False), (True, True)])
def test_a_boolean_may_be_text_as_well(yes: Any, taken: bool) -> None:
    async def tell(yes: bool, number: int, share: float | None = None) -> Heard:
        """Says what it was told, so that somebody can look at it."""
        return Heard(yes=yes, number=number, share=share)

    server = StrictServer("tests", tools=[strict_tool(tell, "Tell", ToolAnnotations())])
    assert answer(call(server, "tell", yes=yes, number="-7", share="0.5")) == {"yes": taken, "number": -7, "share": 0.5}
    assert "yes: Input should be a valid boolean" in refusal(call(server, "tell", yes="1", number=1))


# --- what is said of waiting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"queue": "gpu"}, "no active worker takes tasks from its queue: spawn_workers with `queues`"),
        ({"queue": "celery"}, "It waits for a free worker"),
        ({"queue": "worker.gone", "target_worker_id": "gone"}, "the one worker it was assigned to"),
        ({"status": "started", "rank": 1, "worker_id": "there"}, "It is being worked on"),
        ({"status": "started", "rank": 1, "worker_id": "gone"}, "Its worker is gone"),
        ({"status": "retrying", "rank": 2, "worker_id": "there"}, "An attempt of it failed"),
    ],
)
def test_a_model_is_told_what_a_task_waits_for(
    shim: StrictServer, session: Session, task: dict[str, Any], said: str
) -> None:
    session.add_all([Worker(worker_id="there", queues=["celery"]), Worker(worker_id="gone", status="lost")])
    session.add(Task(task_id="task-1", **task))
    session.commit()
    assert said in answer(call(shim, "get_task", task_id="task-1"))["note"]


def test_an_error_after_a_task_is_recorded_says_its_id_and_that_it_will_run(
    shim: StrictServer, settings: Settings, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DatabaseUnavailable("PostgreSQL went away.")

    monkeypatch.setattr(tools, "_report", fail)
    said = refusal(call(shim, "submit_task", name="tests.noop"))
    away = settings.model_copy(update={"task_modules": ("tests.tasks",), "redis_url": "redis://127.0.0.1:1/0"})
    said_too = refusal(call(tools.create_server(lambda: away), "submit_task", name="tests.noop"))
    ids = set(session.scalars(select(Task.task_id)))
    for words in (said, said_too):
        assert [task_id for task_id in ids if f"Task {task_id} is recorded" in words]
        assert "do not submit it again" in words
        assert "will run" in words


# --- workers that take their time ------------------------------------------------------------------------------------


def spawn(shim: StrictServer) -> tuple[CallToolResult, list[str | None]]:
    """Workers, and what is heard until they are there."""
    heard: list[tuple[float, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async def make() -> CallToolResult:
        async with Client(shim) as client:
            return await client.call_tool("spawn_workers", {"num_workers": 2}, progress_callback=note)

    result = asyncio.run(make())
    assert heard == sorted(set(heard)), "each is further than the one before"
    return result, [message for _, message in heard]


def test_workers_that_take_long_to_come_are_told_of_meanwhile(
    shim: StrictServer, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    def start(request: BurstRequest, settings: Settings) -> None:
        row = {"burst_id": request.burst_id, "origin": "local", "num_workers": 2, "runtime_minutes": 1.0}
        records.begin(settings.database(), **row, minutes_planned=0.0)
        session.add(Worker(worker_id=request.names[0]))
        session.commit()
        time.sleep(1)

    monkeypatch.setattr(tools, "SPEAK", 0.1)
    monkeypatch.setattr(detached, "start", start)
    result, heard = spawn(shim)
    assert answer(result)["num_workers"] == 2
    assert "1 of 2 workers are there" in heard


def test_workers_that_do_not_come_are_told_of_in_one_sentence(
    shim: StrictServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> None:
        raise BurstFailed("The workers did not register.")

    monkeypatch.setattr(bursts.detached, "start", start)
    assert refusal(spawn(shim)[0]) == "The workers did not register."
