"""Plain Python as an agent: functions, coroutine functions, generators, and objects with ``execute_task``.

Called as ``(input)`` or ``(input, context)``. Coroutine functions run on the replica's loop, plain functions
in a thread. A generator, plain or asynchronous, streams: each value that it yields becomes an ``output``
event (a larger one than an event may be is shown by its beginning), and the last one is the task's output,
whole. An agent keeps a session's state in ``context.state``, or by ``save_state`` and ``load_state`` of its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import msgspec

from greenroom.adapters import contract
from greenroom.sdk import context as sdk_context

NAME = "callables"
INPUT_NAMES = ("input", "task", "payload", "message")
MAX_YIELDS = 10_000

_CONTEXT_NAMES = ("context", "ctx")
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)


class Functions:
    """The adapter of functions and of objects with ``execute_task``."""

    name = NAME
    took = "a function, or an object with execute_task"

    def recognises(self, agent: object) -> bool:
        return isinstance(agent, _FUNCTIONS) or callable(getattr(agent, "execute_task", None))

    def parts(self, agent: object) -> tuple[object, ...]:  # noqa: ARG002 - what plain code keeps is its author's affair
        return ()

    def open(self, agent: Any) -> contract.Instance:
        if isinstance(agent, _FUNCTIONS):
            return CallableInstance(agent, None)
        return CallableInstance(agent.execute_task, agent)


class CallableObjects:
    """The adapter of whatever else can be called."""

    name = NAME
    took = "a callable object"

    def recognises(self, agent: object) -> bool:
        return callable(agent) and not isinstance(agent, type)

    def parts(self, agent: object) -> tuple[object, ...]:  # noqa: ARG002 - what plain code keeps is its author's affair
        return ()

    def open(self, agent: Any) -> contract.Instance:
        return CallableInstance(agent.__call__, agent)


class _Convention(msgspec.Struct, frozen=True):
    """How a callable wants to be called; None: by position."""

    is_async: bool
    takes_context: bool = False
    input_keyword: str | None = None
    context_keyword: str | None = None


class CallableInstance:
    """One call. *owner* is the object that *function* belongs to, where it may keep its own state."""

    __slots__ = ("_context", "_convention", "_function", "_owner", "_restored", "_task")
    usage = contract.NO_USAGE

    def __init__(self, function: Callable[..., Any], owner: Any) -> None:
        self._function, self._owner = function, owner
        self._convention = convention_of(function)
        self._restored: Any = None
        self._context: sdk_context.Context | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, input: Any, context: sdk_context.Context) -> Any:
        self._context, self._task = context, asyncio.current_task()
        if self._restored is not None:
            context.state = self._restored
        arguments, keywords = self._arrange(input, context)
        if self._convention.is_async:
            result = self._function(*arguments, **keywords)
        else:
            result = await asyncio.to_thread(self._function, *arguments, **keywords)
        if inspect.isawaitable(result):
            result = await result
        if inspect.isasyncgen(result):
            return await _drain(result, context)
        if inspect.isgenerator(result):
            return await asyncio.to_thread(_drain_blocking, result, context)
        return result

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()  # a coroutine's own signal; a thread has none

    async def save_state(self) -> Any:
        if _keeps_state(self._owner):
            state = self._owner.save_state()
            return await state if inspect.isawaitable(state) else state
        state = self._context.state if self._context is not None else None
        return state if state or self._restored else None

    async def load_state(self, state: Any) -> None:
        if _keeps_state(self._owner):
            loading = self._owner.load_state(state)
            if inspect.isawaitable(loading):
                await loading
            return
        if not isinstance(state, dict):
            raise TypeError(f"context.state is a dict, and the stored state is a {type(state).__name__}")
        self._restored = state

    async def close(self) -> None:
        pass

    def _arrange(self, input: Any, context: sdk_context.Context) -> tuple[list[Any], dict[str, Any]]:
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        convention = self._convention
        if convention.input_keyword is None:
            arguments.append(input)
        else:
            keywords[convention.input_keyword] = input
        if convention.takes_context:
            if convention.context_keyword is None:
                arguments.append(context)
            else:
                keywords[convention.context_keyword] = context
        return arguments, keywords


def convention_of(function: Callable[..., Any]) -> _Convention:
    """Read how *function* wants to be called from its signature.

    The input is the parameter of one of `INPUT_NAMES`, else the first; the context is the one named
    ``context`` or ``ctx``, or annotated as `Context`, else a second required one.
    """
    bound_to = getattr(function, "__func__", function)
    try:
        return _cached_convention(bound_to, is_method=isinstance(function, types.MethodType))
    except TypeError:  # not hashable
        return _read_convention(bound_to, is_method=isinstance(function, types.MethodType))


def _read_convention(function: Callable[..., Any], *, is_method: bool) -> _Convention:
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return _Convention(is_async)
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][is_method:]
    named = [p for p in parameters[is_method:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    first = next((p for p in named if p.name in INPUT_NAMES), by_position[0] if by_position else None)
    context = next((p for p in named if p is not first and _is_context(p)), None)
    if context is None:
        required = [p for p in by_position if p is not first and p.default is p.empty]
        context = required[0] if required else None
    return _Convention(
        is_async,
        takes_context=context is not None,
        input_keyword=_keyword(first, by_position[:1]),
        context_keyword=_keyword(context, by_position[1:2]),
    )


_cached_convention = functools.lru_cache(maxsize=256)(_read_convention)


def _keyword(parameter: inspect.Parameter | None, place: list[inspect.Parameter]) -> str | None:
    if parameter is None or parameter in place:
        return None
    return parameter.name


def _is_context(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    named = annotation.rpartition(".")[2] if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return parameter.name in _CONTEXT_NAMES or (named == "Context" and parameter.name not in INPUT_NAMES)


def _keeps_state(owner: Any) -> bool:
    return callable(getattr(owner, "save_state", None)) and callable(getattr(owner, "load_state", None))


async def _drain(values: AsyncGenerator[Any, Any], context: sdk_context.Context) -> Any:
    last, count = None, 0
    try:
        async for last in values:
            count += 1
            _publish(last, context, count)
    finally:
        await values.aclose()
    return last


def _drain_blocking(values: Generator[Any, Any, Any], context: sdk_context.Context) -> Any:
    last, count = None, 0
    try:
        for last in values:
            count += 1
            _publish(last, context, count)
    finally:
        values.close()
    return last


def _publish(value: Any, context: sdk_context.Context, count: int) -> None:
    if count > MAX_YIELDS:
        raise contract.Failure(
            "result_too_large",
            f"the agent yielded more than {MAX_YIELDS} values; yield less often, or in larger pieces",
        )
    contract.publish(context, value, type="output", shown={"content": value})
