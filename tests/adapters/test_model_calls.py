"""What describes a call of a model or a tool never disturbs the call, whatever clients hold and return."""

# ruff: noqa: ARG002, RUF012 - the signatures and attributes are the frameworks'

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from greenroom.adapters import model_calls


class Recorded:
    """A traced task's context, and the spans that it was asked for."""

    trace_headers = {"traceparent": "00-"}

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def span(self, name: str, **_: Any) -> Iterator[Recorded]:
        self.names.append(name)
        yield self

    def set(self, name: str, value: Any) -> None: ...
    def fail(self, type: str) -> None: ...


class Odd:
    """Says nothing of itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("ask another")

    def __repr__(self) -> str:
        raise RuntimeError("ask another")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(model_calls, "_context", lambda: found)
    return found


async def test_a_client_of_agentchat_that_says_odd_things_is_called_all_the_same(context: Recorded) -> None:
    odd = Odd()

    class Client:
        async def create(self, messages: Any) -> Any:
            return odd

        async def create_stream(self, messages: Any) -> AsyncIterator[Any]:
            yield "a"
            yield odd

    class Agent:
        _model_client = Client()

    model_calls.trace_autogen([Agent()])
    assert await Agent._model_client.create([odd]) is odd
    assert [part async for part in Agent._model_client.create_stream([odd])] == ["a", odd]
    assert context.names == ["chat", "chat"]


@pytest.mark.parametrize("config", [{"messages": [{"role": [], "content": 1}]}, {"messages": [{"role": b"x"}]}, {}])
async def test_a_client_of_ag2_classic_that_says_odd_things_is_called_all_the_same(
    context: Recorded, config: dict[str, Any]
) -> None:
    odd = Odd()

    class Client:
        _config_list = [odd]

        def create(self, **_: Any) -> Any:
            return odd

    class Agent:
        client = Client()

        def execute_function(self, func_call: Any) -> Any:
            return True, {"content": odd}

        async def a_execute_function(self, func_call: Any) -> Any:
            return odd

    agent = Agent()
    model_calls.trace_classic([agent])
    assert agent.client.create(**config) is odd
    assert agent.execute_function({"name": odd})[1]["content"] is odd
    assert await agent.a_execute_function(odd) is odd
    assert context.names == ["chat", "execute_tool", "execute_tool"]
