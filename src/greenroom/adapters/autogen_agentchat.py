"""AutoGen AgentChat (autogen-agentchat 0.7) agents and teams.

They are stateful and must not be shared: run at once, one caller's text enters the other's prompt (agents),
or the second run is refused (teams). Cancelling by token leaves a run in a tool call hanging (hence the
replica's ladder), and a history with a tool call that nobody answered, which model providers reject:
`load_state` answers such calls. A team tells of an exception by text only: `_told` reads it. The model client
is the agent author's: it is never closed here (one that a factory builds for each task closes itself when it
is collected).
"""

from __future__ import annotations

import builtins
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from greenroom.adapters import contract, model_calls
from greenroom.sdk import context as sdk_context

_SHOWN = ("source", "type", "content", "models_usage", "target", "request_id", "result", "retry_attempt")
_INPUT_NAMES = ("task", "input", "message", "prompt", "content")


class AgentChat:
    """The adapter."""

    name = "autogen-agentchat"
    took = "an AutoGen AgentChat agent or team"

    def recognises(self, agent: object) -> bool:
        return _is_agent_or_team(agent)

    def parts(self, agent: object) -> list[object]:
        return list(_parts_of(agent))

    def open(self, agent: object) -> contract.Instance:
        return AgentChatInstance(agent)


class AgentChatInstance:
    """One agent or team, for one task."""

    def __init__(self, runner: Any) -> None:
        import autogen_core

        self._runner = runner
        self._token = autogen_core.CancellationToken()
        self.usage = contract.Usage()

    async def run(self, input: Any, context: sdk_context.Context) -> Any:
        from autogen_agentchat import base, messages

        last, stop_reason = None, None
        if context.trace_headers:
            model_calls.trace_autogen(_parts_of(self._runner))
        try:
            stream = self._runner.run_stream(
                task=text_of(input), cancellation_token=self._token, output_task_messages=False
            )
            async for message in stream:
                if isinstance(message, base.TaskResult):
                    last = message.messages[-1] if message.messages else None
                    stop_reason = message.stop_reason
                else:
                    self._count(message, messages)
                    _publish(context, _event_type(message, messages), message.model_dump(mode="json"))
        except RuntimeError as error:
            raise _told(str(error)) or error from error
        if stop_reason is not None:
            context.emit({"stop_reason": stop_reason}, type="progress")
        return None if last is None else _output_of(last, messages)

    def cancel(self) -> None:
        self._token.cancel()

    async def save_state(self) -> Any:
        return await self._runner.save_state()

    async def load_state(self, state: Any) -> None:
        answer_open_calls(state)
        await self._runner.load_state(state)

    async def close(self) -> None:
        for part in _parts_of(self._runner):
            if inspect.iscoroutinefunction(getattr(part, "close", None)):  # a team has none
                await part.close()

    def _count(self, message: Any, messages: Any) -> None:
        usage = message.models_usage
        if usage is not None and not isinstance(message, messages.ModelClientStreamingChunkEvent):
            self.usage += contract.Usage(usage.prompt_tokens, usage.completion_tokens)


def text_of(input: Any) -> str:
    """Return a task's input as an agent's text: a string, the one under a usual key, or compact JSON."""
    if isinstance(input, str):
        return input
    if isinstance(input, dict) and len(input) == 1:
        (name, value), *_ = input.items()
        if name in _INPUT_NAMES and isinstance(value, str):
            return value
    return json.dumps(input, ensure_ascii=False, separators=(",", ":"))


def answer_open_calls(state: Any) -> None:
    """Add a result to each tool call of *state* that has none: in place, at any depth of nested teams."""
    if isinstance(state, list):
        for item in state:
            answer_open_calls(item)
    elif isinstance(state, dict):
        context = state.get("llm_context")
        if isinstance(context, dict) and isinstance(context.get("messages"), list):
            context["messages"] = list(_answered(context["messages"]))
        for value in state.values():
            answer_open_calls(value)


def _answered(history: list[Any]) -> Iterator[Any]:
    for message, following in zip(history, [*history[1:], {}], strict=True):
        yield message
        calls = message.get("content") if message.get("type") == "AssistantMessage" else None
        if isinstance(calls, list) and following.get("type") != "FunctionExecutionResultMessage":
            results = [
                {
                    "content": "The call was interrupted and has no result.",
                    "name": call["name"],
                    "call_id": call["id"],
                    "is_error": True,
                }
                for call in calls
            ]
            yield {"type": "FunctionExecutionResultMessage", "content": results}


def _is_agent_or_team(found: object) -> bool:
    base = sys.modules.get("autogen_agentchat.base")
    return base is not None and isinstance(found, (base.ChatAgent, base.Team))


def _parts_of(runner: Any) -> Iterator[Any]:
    """Yield *runner*, and the agents and teams within; there is no public list of them."""
    yield runner
    for inner in (*getattr(runner, "_participants", ()), getattr(runner, "_team", None)):
        if _is_agent_or_team(inner):
            yield from _parts_of(inner)


def _event_type(message: Any, messages: Any) -> str:
    if isinstance(message, messages.BaseChatMessage):
        return "message"
    if isinstance(message, messages.ModelClientStreamingChunkEvent):
        return "output"
    if message.type in {
        "ToolCallRequestEvent",
        "ToolCallExecutionEvent",
        "CodeGenerationEvent",
        "CodeExecutionEvent",
    }:
        return "tool"
    return "progress"


def _publish(context: sdk_context.Context, type: str, dumped: dict[str, Any]) -> None:
    names = ("source", "content") if type == "output" else _SHOWN
    data = {name: dumped[name] for name in names if dumped.get(name) is not None}
    try:
        context.emit(data, type=type)
    except ValueError:  # too large, or a tool's result that is no JSON
        content = contract.shortened(data.get("content"))
        context.emit({"source": data.get("source"), "content": content, "shortened": True}, type=type)


def _output_of(message: Any, messages: Any) -> Any:
    if isinstance(message, messages.StructuredMessage):
        return message.content.model_dump(mode="json")
    return message.to_text()


_TOLD = re.compile(r"(?P<type>\w+): (?P<message>.*?)\nTraceback:\n(?P<traceback>.*)", re.DOTALL)
_LAST_LINE = re.compile(r"^(?P<module>[\w.]+\.)?(?P<name>\w+)(?::|$)")


def _told(text: str) -> contract.Failure | None:
    """Read the exception that a team tells of: AutoGen's ``SerializableException`` as text."""
    match = _TOLD.fullmatch(text)
    if match is None:
        return None
    if match["type"] == "RuntimeError" and "\nTraceback:\n" in match["traceback"]:
        return _told(text.removeprefix("RuntimeError: "))  # a team in a team, which told its own error so
    known = _class_named(match["type"], match["traceback"])
    if known is None:
        return contract.Failure(match["type"], match["message"])
    return contract.Failure(
        match["type"],
        match["message"],
        names=tuple(base.__name__ for base in known.__mro__),
        retryable=getattr(known, "retryable", False) is True,
    )


def _class_named(name: str, traceback: str) -> type | None:
    # The traceback says "module.Name: message" at the start of a line of its own; builtins have no module
    # there.
    for line in traceback.splitlines():
        match = _LAST_LINE.match(line)
        if match is not None and match["name"] == name:
            module = sys.modules.get((match["module"] or "builtins.")[:-1], builtins)
            found = getattr(module, name, None)
            return found if isinstance(found, type) else None
    return None
