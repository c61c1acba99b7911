# ruff: noqa: ARG001, T201 - agents as people write them
"""Agents in plain Python, as people write them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from greenroom.sdk import context as sdk_context

logging.basicConfig(format="%(levelname)s %(message)s")  # at import, as scripts do


async def echo(input: Any) -> Any:
    return input


def blocking_echo(payload: Any) -> Any:
    return payload


def named_context(message: str, *, context: sdk_context.Context) -> Any:
    return [message, context.task.id, context.idempotency_key, context.remaining_s() > 0]


def prompted(input: str, prompt: str) -> str:
    return f"{prompt}: {input}"


def make_shouter(mark: str = "!") -> Any:
    def shout(text: str, c: sdk_context.Context) -> str:
        c.emit({"loud": True})
        return text.upper() + mark

    return shout


async def make_later() -> Any:
    await asyncio.sleep(0)
    return echo


class Research:
    def __init__(self, llm_config: dict[str, Any]) -> None:
        self.llm_config = llm_config
        self.tasks = 0

    async def execute_task(self, payload: dict[str, Any]) -> dict[str, Any]:
        self.tasks += 1
        return {"topic": payload["topic"], "model": self.llm_config["model"], "tasks": self.tasks}


class Notebook:
    """Keeps its own state."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def execute_task(self, payload: str) -> int:
        self.lines.append(payload)
        return len(self.lines)

    def save_state(self) -> list[str]:
        return self.lines

    def load_state(self, state: list[str]) -> None:
        self.lines = state


class Doubler:
    def __call__(self, input: int) -> int:
        return input * 2


doubler = Doubler()
notebook = Notebook()
number = 7


async def words(input: str) -> AsyncIterator[str]:
    for word in input.split():
        yield word


def blocking_words(input: str) -> Iterator[str]:
    yield from input.split()


async def drafts(input: Any) -> AsyncIterator[Any]:
    for size in (10, 1_000_000):
        yield input * size


def blocking_drafts(input: Any) -> Iterator[Any]:
    for size in (10, 1_000_000):
        yield input * size


def remember(input: str, context: sdk_context.Context) -> list[str]:
    if input == "fail":
        context.state["lines"] = ["spoiled"]
        raise ValueError("after the state was changed")
    lines = context.state.setdefault("lines", [])
    lines.append(input)
    return list(lines)


def set_state(input: Any, context: sdk_context.Context) -> Any:
    before = context.state
    context.state = input
    return before


class Flaky(ConnectionError):
    pass


class Busy(Exception):
    retryable = True


async def fail(input: str) -> None:
    match input:
        case "value":
            raise ValueError("no")
        case "flaky":
            raise Flaky("the line is bad")
        case "busy":
            raise Busy
        case "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(fail("flaky"))
        case "exit in a task":
            await asyncio.create_task(fail("exit"))
        case "exit":
            sys.exit(3)
        case "cancel":
            raise asyncio.CancelledError
        case "die":
            os._exit(7)
        case _:
            raise KeyError(input)


def fail_blocking(input: str) -> None:
    if input == "stop":
        raise StopIteration("a generator's end")
    sys.exit(input)


async def sleep(input: str) -> str:
    try:
        await asyncio.Event().wait()
    finally:
        print("woken")
    return "never"


async def stubborn(input: str, context: sdk_context.Context) -> str:
    context.emit("sleeping")
    for _ in range(2):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    return "late"


def block(input: float, context: sdk_context.Context) -> str:
    context.emit("blocking")
    time.sleep(input)
    return "unblocked"


async def block_the_loop(input: float) -> str:
    os.write(1, b"blocking the loop")
    time.sleep(input)  # noqa: ASYNC251 - what must not be done
    return "unblocked"


async def leave_a_task(input: str) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            print("the left task was ended")

    left = asyncio.create_task(work())
    await asyncio.shield(left)


def talk(input: str) -> str:
    print("hello", input)
    print("no end", end="", file=sys.stderr)
    logging.getLogger("agent").warning("logged")
    thread = threading.Thread(target=print, args=("from a thread of no task",))
    thread.start()
    thread.join()
    print("the tail", end="")
    return input


async def parent(input: list[str], context: sdk_context.Context) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(context.call("child", each, timeout_s=5)) for each in input]
    return [call.result() for call in calls]


async def forgiving_parent(input: str, context: sdk_context.Context) -> str:
    try:
        return str(await context.call("child", input))
    except sdk_context.SubTaskFailed as error:
        return f"{error.agent} {error.type} {error.message}"


async def careless_parent(input: dict[str, Any], context: sdk_context.Context) -> list[str]:
    given = {"agent": "child", "input": 1, **input}
    refused = []
    for call in (context.call(**given), asyncio.to_thread(lambda: context.call_blocking(**given))):
        try:
            await call
        except (TypeError, ValueError) as error:
            refused.append(f"{type(error).__name__}: {error}")
    return refused


def blocking_parent(input: str) -> Any:
    context = sdk_context.current()
    return context.call_blocking("child", input, session="s")


async def misused(input: str, context: sdk_context.Context) -> str:
    try:
        context.call_blocking("child", input)
    except RuntimeError as error:
        return str(error)
    return "no error"


async def emits(input: str, context: sdk_context.Context) -> list[str]:
    refused = []
    context.emit({"step": 1}, type="progress")
    wrong: tuple[tuple[Any, Any], ...] = (
        ({1, 2}, "message"),
        ("x" * 300_000, "message"),
        ("x", "state"),
        ("x", ["message"]),
        (float("nan"), "tool"),
    )
    for event, type in wrong:
        try:
            context.emit(event, type=type)
        except ValueError as error:
            refused.append(str(error))
    await asyncio.to_thread(context.emit, "from a thread")
    return refused


async def floods(input: str, context: sdk_context.Context) -> str:
    for number in range(20_000):
        context.emit(number)
    for number in range(20_000):
        print("line", number)
    return "done"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Pair(msgspec.Struct):
    left: Point
    right: Point


async def shapes(input: str) -> Any:
    return {
        "point": Point(1, 2),
        "pair": Pair(Point(3, 4), Point(5, 6)),
        "tuple": (1, 2),
        "number": {1: "one"},
    }


def needs_key(api_key: str) -> Any:
    return echo


def unnamed(text: str) -> str:
    return text


def raises() -> Any:
    raise LookupError("no model configured")


def exits() -> Any:
    sys.exit("cannot start")


def returns_a_number() -> int:
    return 42
