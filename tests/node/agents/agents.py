"""Agents for the tests of the node and the API: good ones, slow ones, stubborn ones."""

# ruff: noqa: ARG001, ASYNC110, ASYNC221, ASYNC240, ASYNC251, RET503, T201 - agents need not behave well

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from greenroom.sdk.context import Context, SubTaskFailed


def _note(path: str, line: str) -> None:
    """Append a line to a ledger in one write: what really ran is what stands there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


async def echo(input: Any) -> Any:
    return input


async def pid(input: Any) -> int:
    return os.getpid()


async def failing(input: str) -> None:
    raise ValueError(input)


async def talking(input: dict[str, Any], context: Context) -> str:
    """Emit as many messages as asked for; go on to the second half when the gate is open."""
    count = input["count"]
    for number in range(count):
        if number == count // 2:
            while "gate" in input and not Path(input["gate"]).exists():
                await asyncio.sleep(0.005)
        context.emit({"number": number})
    return "said"


async def gated(input: dict[str, Any], context: Context) -> dict[str, Any]:
    """Say where it runs in the ledger, then end when the gate is there."""
    _note(input["ledger"], f"{input.get('name', '-')} {os.getpid()} {context.task.attempt} {context.task.epoch}")
    while "gate" in input and not Path(input["gate"]).exists():
        await asyncio.sleep(0.005)
    return {"pid": os.getpid(), "attempt": context.task.attempt, "remaining_s": context.remaining_s()}


async def chained(input: list[Any], context: Context) -> list[Any]:
    """Add its word and the session's links to a hash chain that it keeps in the session's state."""
    word, gate = input
    state = context.state
    if gate:
        await asyncio.to_thread(_wait_for, gate)
    link = hashlib.sha256(f"{state.get('link', '')}{word}".encode()).hexdigest()
    state["link"], state["count"] = link, state.get("count", 0) + 1
    return [state["count"], link]


# Chains


async def first(input: Any, context: Context) -> Any:
    return ["first", await context.call("second", input)]


async def second(input: Any, context: Context) -> Any:
    return ["second", await context.call("third", input)]


async def third(input: Any) -> Any:
    return ["third", input]


async def parallel(input: list[Any], context: Context) -> list[Any]:
    return list(await asyncio.gather(*(context.call("third", item) for item in input)))


async def overlapping(input: Any, context: Context) -> Any:
    """Call twice; the second call begins when the first one's answer may just be on its way."""

    async def late() -> Any:
        await asyncio.sleep(input)
        return await context.call("third", "late")

    return await asyncio.gather(context.call("third", "early"), late())


def blocking_parent(input: Any, context: Context) -> Any:
    return context.call_blocking("third", input)


async def parent(input: dict[str, Any], context: Context) -> dict[str, Any]:
    """Call *agent* with *child*, then wait for the gate; say what came of the call."""
    _note(input["ledger"], f"parent {os.getpid()} {context.task.attempt}")
    try:
        answer = await context.call(input["agent"], input["child"], timeout_s=input.get("timeout_s"))
    except SubTaskFailed as error:
        return {"failed": error.type, "message": error.message}
    _note(input["ledger"], f"answered {os.getpid()} {context.task.attempt}")
    while "gate" in input and not Path(input["gate"]).exists():
        await asyncio.sleep(0.005)
    return {"answer": answer}


# Stubborn ones


async def stubborn(input: dict[str, Any], context: Context) -> Any:
    """Do what *input* says about the way not to end. The others on its replica say `echo`."""
    if "ledger" in input:
        _note(input["ledger"], f"{input['how']} {os.getpid()} {context.task.attempt}")
    match input["how"]:
        case "echo":
            return "echo"
        case "wait":
            await asyncio.Event().wait()
        case "busy":
            while True:
                pass
        case "sleep":
            time.sleep(3600)
        case "deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    continue
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat":
            eaten = []
            while True:
                eaten.append(bytearray(16 << 20))


# Those that use much

_leaked: list[bytearray] = []


def leaking(input: dict[str, Any]) -> int:
    """Keep so many megabytes more, for good."""
    _leaked.append(bytearray(os.urandom(1024) * 1024 * input["mb"]))
    time.sleep(input.get("for_s", 0))
    return os.getpid()


def hoarding(input: dict[str, Any], context: Context) -> int:
    """Hold so many megabytes until the gate is there; beside another one that does, that is too much."""
    hoard = []
    for _ in range(input["mb"] if context.task.attempt == 1 and not Path(input["gate"]).exists() else 1):
        hoard.append(bytearray(os.urandom(1024) * 1024))
        time.sleep(0.001)
    _note(input["ledger"], f"hoard {os.getpid()} {context.task.attempt}")
    _wait_for(input["gate"])
    return os.getpid()


def thread_blocked(input: dict[str, Any]) -> None:
    _note(input["ledger"], f"thread {os.getpid()} 1")
    while True:
        time.sleep(0.1)


async def hanging(input: dict[str, Any], context: Context) -> int:
    """Hang on the first attempt, in the way that *input* says; return the number of a later one."""
    _note(input["ledger"], f"{input['how']} {os.getpid()} {context.task.attempt}")
    if context.task.attempt == 1:
        match input["how"]:
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "busy loop":
                while True:
                    pass
            case "deadlock":
                lock = threading.Lock()
                with lock:
                    lock.acquire()
    return context.task.attempt


async def blocking(input: dict[str, Any], context: Context) -> float:
    """Block the loop, longer and longer, until it took *least_s*; return how long that was."""
    _note(input["ledger"], f"{input['how']} {os.getpid()} {context.task.attempt}")
    size, took_s = 14, 0.0
    while took_s < input["least_s"]:
        await asyncio.sleep(0)
        size += 1
        begun_s = time.monotonic()
        match input["how"]:
            case "regex":
                re.match("(a+)+$", "a" * size + "b")
            case "json":
                json.loads(b'"' + b"\u0041" * 2**size + b'"')
            case "power":
                pow(3, (1 << 2 ** (size - 8)) - 1, (1 << 1023) - 1)
            case "sleep":
                time.sleep(input["least_s"])
        took_s = time.monotonic() - begun_s
    return took_s


async def dozing(input: dict[str, Any]) -> str:
    """Block the loop again and again, a second each time, until the gate is there."""
    _note(input["ledger"], f"dozing {os.getpid()} 1")
    while not Path(input["gate"]).exists():
        time.sleep(1.0)
        await asyncio.sleep(0)
    return "awake"


def slow_thread(input: dict[str, Any]) -> int:
    _note(input["ledger"], f"thread {os.getpid()} 1")
    time.sleep(input["for_s"])
    return os.getpid()


# Revisions, good and bad


def late(gate: str) -> Any:
    """Be built when the gate is open."""
    _wait_for(gate)
    return echo


async def agrees(agent: Any) -> None:
    assert await agent(7) == 7


async def objects(agent: Any) -> None:
    assert await agent(7) == 8, "seven is no eight"


# Factories that go wrong


def raising() -> None:
    raise RuntimeError("the model is missing")


def junk() -> int:
    return 42


def greedy(model: str) -> Any:
    return echo


def dying() -> Any:
    """Be ready, then die with nothing to do."""
    asyncio.get_running_loop().call_later(0.05, os._exit, 3)
    return echo


def dying_when_built() -> Any:
    os._exit(4)


class ServiceDown(Exception):
    """What the agent calls does not answer: the task is worth a retry."""

    retryable = True


async def calling(input: dict[str, Any]) -> int:
    """Call a service that is down while a file is there, in all replicas or in the one whose pid stands in the file."""
    _note(input["ledger"], f"begin {os.getpid()} {input['name']}")
    down = Path(input["down"])
    is_down = down.exists() and (down.read_text() or str(os.getpid())) == str(os.getpid())
    if not is_down:
        await asyncio.sleep(input.get("takes_s", 0.0))
    _note(input["ledger"], f"end {os.getpid()} {input['name']} {'down' if is_down else 'ok'}")
    if is_down:
        raise ServiceDown("connection refused")
    return os.getpid()


async def chatty(input: dict[str, Any]) -> str:
    """Say what it is told to, in the ways that there are; go on when the gate is there."""
    for text in input.get("print", []):
        print(text)
    for level, text in input.get("log", []):
        logging.getLogger("tools.search").log(logging.getLevelName(level), text)
    if "bytes" in input:
        os.write(1, bytes.fromhex(input["bytes"]))
    if "shell" in input:
        subprocess.run(["/bin/sh", "-c", input["shell"]], check=True)
    for number in range(input.get("flood", 0)):
        print(f"flood {number}")
    if "thread" in input:
        thread = threading.Thread(target=logging.getLogger("tools.thread").error, args=(input["thread"],))
        thread.start()
        thread.join()
    if "gate" in input:
        await asyncio.to_thread(_wait_for, input["gate"])
        print("after the gate")
    if "die" in input:
        os.kill(os.getpid(), signal.SIGKILL)
    return "said"
