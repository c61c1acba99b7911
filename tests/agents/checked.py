# ruff: noqa: ARG001, T201 - agents as people write them
"""An agent with checks of its own, good and bad, as people write them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from greenroom.sdk import context as sdk_context


def agent(input: Any, context: sdk_context.Context) -> Any:
    match input:
        case {"sum": [*numbers]}:
            return sum(numbers)
        case "count":
            counted.append(threading.get_ident())
            return len(counted)
        case "fail":
            raise ValueError("cannot do that")
        case "exit":
            sys.exit(3)
        case "set":
            return {1, 2}
        case "call":
            return context.call_blocking("other", 1)
        case "talk":
            context.emit("loud")
            print("aloud")
        case ["block", descriptor]:
            os.write(2, b"the agent blocks\n")
            os.read(descriptor, 1)
    return input


counted: list[int] = []


class Built:
    """An agent that is built for each task."""

    def execute_task(self, payload: Any) -> Any:
        return payload


def build_nothing() -> Built:
    raise LookupError("no model\nis configured")


async def build_for_ever() -> Built:
    await asyncio.Event().wait()
    return Built()


async def asleep(input: Any) -> None:
    os.write(2, b"the agent sleeps\n")
    try:
        await asyncio.Event().wait()
    finally:
        os.write(2, b"the agent was woken\n")


# --- checks that pass


def plain() -> None:
    assert threading.current_thread() is not threading.main_thread()


async def coroutine() -> str:
    return "anything"


def asks(agent: Callable[[Any], Any]) -> None:
    assert agent({"sum": [1, 2]}) == 3
    assert agent("talk") == "talk"


async def awaits(agent: Callable[[Any], Awaitable[Any]]) -> int:
    first, second = await asyncio.gather(agent({"sum": [1]}), agent({"sum": [2]}))
    assert (first, second) == (1, 2)
    return 0


async def asks_from_a_thread(agent: Callable[[Any], Any]) -> None:
    assert await asyncio.to_thread(agent, {"sum": [3]}) == 3


def returns_a_coroutine(agent: Callable[[Any], Any]) -> Any:
    return awaits(agent)


def sees_the_errors(agent: Callable[[Any], Any]) -> None:
    types = []
    for input in ("fail", "exit", "set", "call"):
        try:
            agent(input)
        except sdk_context.SubTaskFailed as error:
            types.append((error.agent, error.type, error.message))
    assert [type for _, type, _ in types] == ["ValueError", "SystemExit", "result_not_json", "RuntimeError"]
    assert "cannot be made in a check" in types[-1][2]


async def gives_up(agent: Callable[[Any], Awaitable[Any]]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(agent("x"), 0.01)


# --- checks that fail


def bare() -> None:
    answer = 4
    assert answer == 5


async def in_words(agent: Callable[[Any], Awaitable[Any]]) -> None:
    answer = await agent({"sum": [2, 2]})
    assert answer == 5, f"2 + 2 is {answer}\nand not 5"


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises())


async def raises() -> None:
    raise LookupError("nothing there")


def reads_a_variable() -> None:
    os.environ["A_SECRET_KEY"]


def returns_false() -> bool:
    return False


def leaves() -> None:
    sys.exit(3)


async def interrupts() -> None:
    raise KeyboardInterrupt


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def does_not_await(agent: Callable[[Any], Any]) -> bool:
    forgotten = agent("x")
    try:
        return bool(forgotten)
    finally:
        forgotten.close()  # this test's warnings are errors


def fails_with_the_agent(agent: Callable[[Any], Any]) -> None:
    agent("fail")


def asks_what_is_no_json(agent: Callable[[Any], Any]) -> None:
    agent({1, 2})


def calls() -> None:
    sdk_context.current().call_blocking("other", 1)


# --- no checks


def takes_two(agent: Any, more: Any) -> None: ...


def yields(agent: Any) -> Iterator[None]:
    yield


class Checks:
    pass


# --- checks that do not end


async def waits() -> None:
    os.write(2, b"the check waits\n")
    try:
        await asyncio.Event().wait()
    finally:
        os.write(2, b"the check was woken\n")


def blocks() -> None:
    os.write(2, b"the check blocks\n")
    threading.Event().wait()


async def swallows() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def asks_and_waits(agent: Callable[[Any], Any]) -> None:
    agent("x")


async def awaits_and_waits(agent: Callable[[Any], Awaitable[Any]]) -> None:
    await agent("x")


def asks_a_blocking_one(agent: Callable[[Any], Any]) -> None:
    agent(["block", os.pipe()[0]])


async def awaits_a_blocking_one(agent: Callable[[Any], Awaitable[Any]]) -> None:
    await agent(["block", os.pipe()[0]])


async def gives_up_a_blocking_one(agent: Callable[[Any], Awaitable[Any]]) -> None:
    wait_end, free_end = os.pipe()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(agent(["block", wait_end]), 0.01)
    os.write(2, b"the check waits\n")
    try:
        await asyncio.Event().wait()
    finally:
        os.write(free_end, b"x")


def slow_to_tell() -> None:
    time.sleep(0.05)
