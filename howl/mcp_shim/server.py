"""An MCP server that answers every message: each error is one sentence, and none ends the server."""

import inspect
import json
import logging
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Collection
from functools import wraps
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import (
    PARSE_ERROR,
    CallToolResult,
    ErrorData,
    InputRequiredResult,
    JSONRPCError,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel, ValidationError, create_model, model_validator

from howl.errors import HowlError, InvalidRequest, visible
from howl.mcp_shim.schemas import brief, only, unquoted

logger = logging.getLogger(__name__)

#: Most bytes of one call's arguments, as JSON.
CALL_LIMIT = 2 << 20
#: Most characters of an error's text.
ERROR_LIMIT = 2000

#: A NUL character in JSON text: \\u0000 after an even number of backslashes.
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
#: Tokens needed to find a message's id: `"id": …`, other texts, and brackets.
TOKENS = re.compile(r""""id"\s*:\s*(?P<id>\d{1,15}|"[^"\\]{0,200}")|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]""")


class StrictServer(MCPServer[None]):
    """A server that refuses arguments no tool could use, and turns every error into one sentence for the model."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[None, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        try:
            _refuse_unusable(arguments)
            return await super().call_tool(name, arguments, context)
        except HowlError as error:
            raise ToolError(_printable(error.message)) from None
        except ToolError as error:
            raise _told(name, error) from error.__cause__

    async def run_stdio_async(self) -> None:
        """Serve one client on stdin and stdout; the SDK's own never answers what it cannot parse: its caller hangs."""
        readable, parsed = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        async with stdio_server() as (incoming, outgoing), anyio.create_task_group() as group:
            group.start_soon(_answer_unreadable, incoming, readable, outgoing.send)
            options = self._lowlevel_server.create_initialization_options()
            await self._lowlevel_server.run(parsed, outgoing, options)


def _refuse_unusable(arguments: dict[str, Any]) -> None:
    try:
        text = json.dumps(arguments, ensure_ascii=False)
        size = len(text.encode())
    except RecursionError:
        raise InvalidRequest("The arguments are nested too deeply: flatten them.") from None
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, half a surrogate pair, is a ValueError
        raise InvalidRequest(f"The arguments are not JSON in UTF-8: {error}.") from None
    if size > CALL_LIMIT:
        raise InvalidRequest(f"The arguments have {size:,} bytes and {CALL_LIMIT:,} are allowed: pass a reference.")
    if NUL.search(text):
        raise InvalidRequest("The arguments contain a NUL character, which cannot be stored: take it out.")


def _told(tool: str, error: ToolError) -> ToolError:
    """Return the error as the model reads it; the cause of an unexpected one stays in the log, which the SDK writes."""
    cause = error.__cause__
    if isinstance(cause, HowlError):
        return ToolError(_printable(cause.message))
    if isinstance(cause, ValidationError) and not isinstance(error, UnexpectedToolError):
        return ToolError(_printable(f"{tool} cannot be called so: {_mistakes(cause)}."))
    if isinstance(error, UnexpectedToolError):
        return UnexpectedToolError(
            f"{tool} failed for a reason of its own: the log of `howl mcp` (its stderr) says which."
        )
    return ToolError(_printable(str(error)))


def _mistakes(error: ValidationError) -> str:
    """Describe the first few validation errors by argument, without their values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    texts = (
        "there is no such argument" if problem["type"] == "extra_forbidden" else problem["msg"] for problem in problems
    )
    named = [f"{str(problem['loc'][0])[:60]}: {text}" for problem, text in zip(problems, texts, strict=True)]
    return "; ".join(dict.fromkeys(named[:5]))


def _printable(text: str) -> str:
    """Cut a text to ERROR_LIMIT and make it printable, so that UTF-8 can carry it."""
    return visible(text[:ERROR_LIMIT])


async def _answer_unreadable(
    incoming: AsyncIterable[SessionMessage | Exception],
    readable: MemoryObjectSendStream[SessionMessage | Exception],
    answer: Callable[[SessionMessage], Awaitable[None]],
) -> None:
    """Pass on messages; answer unreadable ones (JSON too deep, half a surrogate pair) with an error under their id."""
    async with readable:
        async for item in incoming:
            if isinstance(item, Exception):
                await answer(SessionMessage(_refusal(item)))
            else:
                await readable.send(item)


def _refusal(error: Exception) -> JSONRPCError:
    problem = (
        error.errors(include_url=False)[0] if isinstance(error, ValidationError) else {"msg": type(error).__name__}
    )
    reason = f"This message cannot be read: {problem['msg']}."
    logger.warning(reason)
    line = problem.get("input")
    return JSONRPCError(
        jsonrpc="2.0",
        id=_request_id(line) if isinstance(line, str) else None,
        error=ErrorData(code=PARSE_ERROR, message=_printable(reason)),
    )


def _request_id(line: str) -> int | str | None:
    """Find the `id` of the outermost object in a line that is not quite JSON."""
    depth = 0
    for token in TOKENS.finditer(line):
        if token["id"] and depth == 1:
            found: int | str = json.loads(token["id"])
            return found
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
    return None


def strict_tool(
    function: Callable[..., Any],
    title: str,
    annotations: ToolAnnotations,
    *,
    structured: bool = True,
    shows: Collection[str] = (),
) -> Tool:
    """Make a tool that takes exactly its arguments, of exactly their types: the SDK alone ignores a misspelt one.

    Numbers and booleans are also accepted as texts. Its answer has a schema (of all properties, or of those that
    `shows` names where another tool has the same schema), unless it is not `structured`: then the function returns
    content for models to look at.
    """
    tool = Tool.from_function(
        function,
        title=title,
        description=inspect.getdoc(function),
        annotations=annotations,
        structured_output=structured,
    )
    metadata = tool.fn_metadata
    validators: dict[str, Any] = {"unquoted": model_validator(mode="before")(unquoted(tool.parameters))}
    metadata.arg_model = create_model(
        metadata.arg_model.__name__,
        __base__=metadata.arg_model,
        __cls_kwargs__={"extra": "forbid", "strict": True},
        __validators__=validators,
    )
    tool.parameters = brief(metadata.arg_model.model_json_schema(by_alias=True))
    if metadata.output_schema is not None:
        whole = brief(metadata.output_schema, answers=True)
        metadata.output_schema = only(whole, shows) if shows else whole
        tool.fn = _answering(function)
    return tool


def _answering(function: Callable[..., Awaitable[BaseModel]]) -> Callable[..., Awaitable[CallToolResult]]:
    """Wrap a function so that its answer leaves out null and its text is compact JSON."""

    @wraps(function)
    async def answer(**arguments: Any) -> CallToolResult:
        document = (await function(**arguments)).model_dump(mode="json", exclude_none=True)
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return CallToolResult(content=[TextContent(text=text)], structured_content=document)

    return answer
