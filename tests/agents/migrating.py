# ruff: noqa: ARG001, ARG002 - agents as people write them
"""Agents that take over the state which other revisions of them wrote, in each of the places for it, and badly."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

from greenroom.sdk import context as sdk_context


def migrate(state: dict[str, Any], from_revision: int, to_revision: int) -> dict[str, Any]:
    assert threading.current_thread() is not threading.main_thread()
    return {**state, "path": ["module", from_revision, to_revision]}


def agent(input: Any, context: sdk_context.Context) -> Any:
    if input is not None:
        context.state = input
    return context.state


class Keeper:
    """Keeps state of its own; its migrate is found on the object."""

    def __init__(self) -> None:
        self.state: Any = None

    def execute_task(self, payload: Any) -> Any:
        return self.state

    def save_state(self) -> Any:
        return self.state

    def load_state(self, state: Any) -> None:
        if state == {"path": "unloadable"}:
            raise KeyError("lines")
        self.state = state


class Own(Keeper):
    async def migrate(self, state: Any, from_revision: int, to_revision: int) -> Any:
        await asyncio.sleep(0)
        return {"path": ["object", from_revision, to_revision], "was": state}


class Unfit(Keeper):
    """Its migrate takes no revisions, and does not count."""

    def migrate(self, database: str) -> None:
        raise AssertionError("not meant")


def build() -> Keeper:
    return Keeper()


def _of_the_function(state: Any, from_revision: int, to_revision: int) -> Any:
    return {"path": ["function", from_revision, to_revision]}


build.migrate = _of_the_function  # type: ignore[attr-defined]


class Same(Keeper):
    def migrate(self, state: Any, *revisions: int) -> Any:
        return state


class Fails(Keeper):
    def migrate(self, state: Any, from_revision: int, to_revision: int) -> Any:
        match state:
            case "raise":
                raise KeyError("no lines")
            case "exit":
                sys.exit(3)
            case "set":
                return {1, 2}
            case "huge":
                return "x" * 5_000_000
            case "unloadable":
                return {"path": "unloadable"}
            case "wait":
                os.write(2, b"the migration waits\n")
                threading.Event().wait()
        return None
