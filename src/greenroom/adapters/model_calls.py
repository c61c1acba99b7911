"""Spans for what frameworks do not trace themselves: AutoGen's calls of models, and AG2 Classic's of models and tools.

A client may be shared by many tasks, of which few are traced. So it is the class whose methods are wrapped, once, at
the first traced task; whoever calls them outside of one comes straight through. Names are those of OpenTelemetry's
conventions for GenAI.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from greenroom.sdk import context as sdk_context

MAX_MESSAGES, MAX_CONTENT = 8, 1000  # of a call, for nodes that export what was said; characters of each
_MARK = "_greenroom_traced"

P = ParamSpec("P")
T = TypeVar("T")
Described = tuple[Any, dict[str, Any]]  # the model or the tool, and the attributes of its span
_UNKNOWN: Described = (None, {})


def trace_autogen(agents: Iterable[object]) -> None:
    """Have the model clients of AgentChat's *agents* and teams make spans."""
    for agent in agents:
        client = getattr(agent, "_model_client", None)
        if client is not None:
            _wrap(type(client), "create", _autogen_create)
            _wrap(type(client), "create_stream", _autogen_stream)


def trace_classic(agents: Iterable[object]) -> None:
    """Have the model clients and tools of AG2 Classic's *agents* make spans."""
    for agent in agents:
        client = getattr(agent, "client", None)
        if client is not None and callable(getattr(client, "create", None)):
            _wrap(type(client), "create", _classic_create)
        for name, wrapper in (("execute_function", _classic_tool), ("a_execute_function", _classic_async_tool)):
            if callable(getattr(agent, name, None)):
                _wrap(type(agent), name, wrapper)


def _wrap(kind: type, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap a method where it is defined, so that who inherits it has one span of each call."""
    owner = next((each for each in kind.__mro__ if name in vars(each)), None)
    if owner is None or not callable(original := vars(owner)[name]) or hasattr(original, _MARK):
        return
    wrapped = functools.wraps(original)(wrapper(original))
    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _context() -> sdk_context.Context | None:
    """Return the context of the task that runs here, if it is traced."""
    try:
        context = sdk_context.current()
    except LookupError:
        return None
    return context if context.trace_headers else None


def _harmless(otherwise: T) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have what describes a call return *otherwise* where it fails.

    Clients may hold and return anything at all, and the call is the agent's.
    """

    def decorate(describe: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(describe)
        def tried(*given: P.args, **named: P.kwargs) -> T:
            try:
                return describe(*given, **named)
            except Exception:  # noqa: BLE001 - see above
                return otherwise

        return tried

    return decorate


# --- AgentChat


def _autogen_create(original: Callable[..., Any]) -> Callable[..., Any]:
    async def create(self: Any, messages: Any, *given: Any, **named: Any) -> Any:
        context = _context()
        if context is None:
            return await original(self, messages, *given, **named)
        model, attributes = _autogen_request(self, messages)
        with context.span(_named("chat", model), kind="client", attributes=attributes) as span:
            result = await original(self, messages, *given, **named)
            _note_autogen(span, result)
            return result

    return create


def _autogen_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def create_stream(self: Any, messages: Any, *given: Any, **named: Any) -> AsyncIterator[Any]:
        context = _context()
        if context is None:
            async for part in original(self, messages, *given, **named):
                yield part
            return
        model, attributes = _autogen_request(self, messages)
        with context.span(_named("chat", model), kind="client", attributes=attributes, is_current=False) as span:
            async for part in original(self, messages, *given, **named):
                if not isinstance(part, str):  # the last one, with all of it
                    _note_autogen(span, part)
                yield part

    return create_stream


@_harmless(_UNKNOWN)
def _autogen_request(client: Any, messages: Any) -> Described:
    arguments = getattr(client, "_create_args", None)
    model = arguments.get("model") if isinstance(arguments, Mapping) else None
    parts = type(client).__module__.split(".")
    provider = parts[2] if parts[:2] == ["autogen_ext", "models"] and len(parts) > 2 else type(client).__name__
    said = [(getattr(message, "type", ""), getattr(message, "content", None)) for message in _last(messages)]
    return model, _request(provider, model, said)


@_harmless(None)
def _note_autogen(span: sdk_context.Span, result: Any) -> None:
    usage = getattr(result, "usage", None)
    _note(
        span,
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        finish_reason=getattr(result, "finish_reason", None),
        said=[("assistant", getattr(result, "content", None))],
    )


# --- AG2 Classic


def _classic_create(original: Callable[..., Any]) -> Callable[..., Any]:
    def create(self: Any, *given: Any, **config: Any) -> Any:
        context = _context()
        if context is None:
            return original(self, *given, **config)
        model, attributes = _classic_request(self, config)
        with context.span(_named("chat", model), kind="client", attributes=attributes) as span:
            response = original(self, *given, **config)
            _note_classic(span, response)
            return response

    return create


@_harmless(_UNKNOWN)
def _classic_request(client: Any, config: Mapping[str, Any]) -> Described:
    configured: Mapping[str, Any] = next(iter(getattr(client, "_config_list", None) or ()), {})
    model = config.get("model") or configured.get("model")
    said = [
        (message.get("role", ""), message.get("content"))
        for message in _last(config.get("messages"))
        if isinstance(message, Mapping)
    ]
    return model, _request(configured.get("api_type") or "openai", model, said)


@_harmless(None)
def _note_classic(span: sdk_context.Span, response: Any) -> None:
    usage, choices = getattr(response, "usage", None), getattr(response, "choices", None) or ()
    span.set("gen_ai.response.model", getattr(response, "model", None))
    _note(
        span,
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        finish_reason=getattr(choices[0], "finish_reason", None) if choices else None,
        said=[("assistant", getattr(getattr(choice, "message", None), "content", None)) for choice in choices],
    )


def _classic_tool(original: Callable[..., Any]) -> Callable[..., Any]:
    def execute_function(self: Any, func_call: Any, *given: Any, **named: Any) -> Any:
        context = _context()
        if context is None:
            return original(self, func_call, *given, **named)
        name, attributes = _tool(func_call, named)
        with context.span(_named("execute_tool", name), attributes=attributes) as span:
            done: Any = original(self, func_call, *given, **named)
            _note_tool(span, done)
            return done

    return execute_function


def _classic_async_tool(original: Callable[..., Any]) -> Callable[..., Any]:
    async def a_execute_function(self: Any, func_call: Any, *given: Any, **named: Any) -> Any:
        context = _context()
        if context is None:
            return await original(self, func_call, *given, **named)
        name, attributes = _tool(func_call, named)
        with context.span(_named("execute_tool", name), attributes=attributes) as span:
            done = await original(self, func_call, *given, **named)
            _note_tool(span, done)
            return done

    return a_execute_function


@_harmless(_UNKNOWN)
def _tool(call: Any, named: Mapping[str, Any]) -> Described:
    asked = call if isinstance(call, Mapping) else {}
    name = asked.get("name")
    return name, {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": named.get("call_id"),
        "gen_ai.tool.call.arguments": asked.get("arguments"),
    }


@_harmless(None)
def _note_tool(span: sdk_context.Span, done: Any) -> None:
    is_done, result = done if isinstance(done, tuple) and len(done) == 2 else (True, None)
    if not is_done:  # an exception of the tool is text for the model
        span.fail("tool_error")
    if isinstance(result, Mapping):
        span.set("gen_ai.tool.call.result", _text(result.get("content")))


# --- both


def _named(operation: str, what: object) -> str:
    return f"{operation} {what}" if isinstance(what, str) and what else operation


def _request(provider: str, model: object, said: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.input.messages": _messages(said),
    }


def _note(
    span: sdk_context.Span, *, input_tokens: object, output_tokens: object, finish_reason: object, said: Any
) -> None:
    span.set("gen_ai.usage.input_tokens", input_tokens)
    span.set("gen_ai.usage.output_tokens", output_tokens)
    if isinstance(finish_reason, str):
        span.set("gen_ai.response.finish_reasons", [finish_reason])
    span.set("gen_ai.output.messages", _messages(said))


def _last(messages: Any) -> list[Any]:
    return list(messages[-MAX_MESSAGES:]) if isinstance(messages, list | tuple) else []


def _messages(said: Iterable[tuple[str, Any]]) -> str:
    return json.dumps(
        [
            {"role": _ROLES.get(role, role), "parts": [{"type": "text", "content": _text(content)}]}
            for role, content in said
        ],
        ensure_ascii=False,
    )


_ROLES = {
    "SystemMessage": "system",
    "UserMessage": "user",
    "AssistantMessage": "assistant",
    "FunctionExecutionResultMessage": "tool",
}


def _text(content: object) -> str:
    return (content if isinstance(content, str) else repr(content))[:MAX_CONTENT]
