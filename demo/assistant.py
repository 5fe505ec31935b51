"""The demo's MCP client: talks to `howl mcp` over standard input and output, as Cursor or Claude would."""

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.types import Implementation, TextContent

from demo.processes import HOWL
from howl import __version__
from howl.errors import DemoFailed

#: Seconds for one answer.
ANSWER_PATIENCE = 90


class Assistant:
    """A client that calls tools, and counts the calls."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls: Counter[str] = Counter()

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its structured answer; raises DemoFailed if it refuses, or does not answer."""
        self.calls[tool] += 1
        try:
            result = await self.client.call_tool(tool, arguments)
        except MCPError as error:
            raise DemoFailed(f"The tool {tool} did not answer: {error}.") from error
        if result.is_error or result.structured_content is None:
            said = " ".join(part.text for part in result.content if isinstance(part, TextContent))
            raise DemoFailed(f"The tool {tool} refused: {said}")
        answer: dict[str, Any] = result.structured_content
        return answer

    def told(self) -> str:
        """List the tools that were called, and how often."""
        return ", ".join(f"{tool} {number}x" for tool, number in sorted(self.calls.items()))


@asynccontextmanager
async def assistant(log: Path) -> AsyncIterator[Assistant]:
    """Yield a client connected to a `howl mcp` of its own, which logs to a file."""
    shim = StdioServerParameters(command=HOWL, args=["mcp"], env=dict(os.environ))
    me = Implementation(name="demo", version=__version__)
    with log.open("w") as errors, _unpacked():
        async with Client(stdio_client(shim, errors), client_info=me, read_timeout_seconds=ANSWER_PATIENCE) as client:
            yield Assistant(client)


@contextmanager
def _unpacked() -> Iterator[None]:
    """Unwrap exceptions: the SDK runs its users inside task groups, which wrap whatever they raise."""
    try:
        yield
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None
