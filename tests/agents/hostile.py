# ruff: noqa: ARG001, T201 - agents as people write them
"""Agents whose results, errors and output are made to hurt."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Trap(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("sprung")


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def result(input: str) -> Any:
    match input:
        case "100 MB":
            return "x" * 100_000_000
        case "100 MB in pieces":
            return ["x" * 1_000_000] * 100
        case "NaN":
            return {"score": float("nan")}
        case "cycle":
            return _cycle()
        case "bytes":
            return b"bytes"
        case "lone surrogate":
            return "\ud800"
        case "raising __str__":
            return Mute()
        case "raising key":
            return {Mute(): 1}
        case "raising mapping":
            return Trap(a=1)
        case "deep nesting":
            return _deep(100)
        case "very deep nesting":
            return _deep(100_000)
        case "huge int":
            return 10**30
        case "very huge int":
            return 10**10_000
        case "tuple keys":
            return {(1, 2): 3}
        case "keys that collide":
            return {1: "a", "1": "b"}
        case "NUL":
            return "\0"
        case "a generator inside":
            return {"numbers": (n for n in range(3))}
        case "a class":
            return Mute
    raise KeyError(input)


async def error(input: str) -> None:
    match input:
        case "10 MB message":
            raise ValueError("é" * 5_000_000)
        case "raising __str__":
            raise MuteError
        case "surrogate and NUL":
            raise ValueError("a\ud800b\0c")
        case "long type name":
            raise type("E" * 10_000, (Exception,), {})
        case "recursion":
            await error(input)
    raise KeyError(input)


def endless(input: str) -> Iterator[int]:
    yield from itertools.count()


async def endless_async(input: str) -> AsyncIterator[int]:
    for number in itertools.count():
        yield number


def streamed_set(input: str) -> Iterator[set[int]]:
    yield {1}


def flood(input: str) -> str:
    for _ in range(50):
        sys.stdout.write("x" * 1_000_000)
    sys.stdout.write("\n")
    for _ in range(100_000):
        print("flood")
    return "dry"


async def stdin_and_exit(input: str) -> None:
    print("last words")
    raise SystemExit(1)
