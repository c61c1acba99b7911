from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import pytest

from greenroom.adapters import callables, contract, registry
from greenroom.sdk import context as sdk_context


class Machine:
    """An agent of a framework that has an adapter of its own, and is callable, too."""

    def __call__(self, input: Any) -> Any:
        return input


class MachineAdapter:
    name = "machine"
    took = "a machine"

    def recognises(self, agent: object) -> bool:
        return isinstance(agent, Machine)

    def parts(self, agent: object) -> tuple[object, ...]:  # noqa: ARG002 - the contract's signature
        return ()

    def open(self, agent: object) -> contract.Instance:
        raise NotImplementedError


class FakeEntryPoint:
    def load(self) -> type[MachineAdapter]:
        return MachineAdapter


def test_an_installed_adapter_is_found_before_callable_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def entry_points(*, group: str) -> list[FakeEntryPoint]:
        asked.append(group)
        return [FakeEntryPoint()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry._installed.cache_clear()
    try:
        assert registry.find(print).name == "callables"  # type: ignore[union-attr]
        assert not asked, "a function needs no look-up"
        assert registry.find(Machine()).name == "machine"  # type: ignore[union-attr]
        assert asked == ["greenroom.adapters"]
        assert registry.find(object()) is None
    finally:
        registry._installed.cache_clear()


def _first(text: str) -> None: ...
def _second(text: str, c: Any) -> None: ...
def _keyword_context(payload: str, *, context: Any) -> None: ...
def _annotated(x: str, where: sdk_context.Context, more: int = 0) -> None: ...
def _optional(input: str, limit: int = 3) -> None: ...
def _other_order(model: str, input: str, context: Any) -> None: ...
async def _asynchronous(task: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes_context", "input_keyword", "context_keyword"),
    [
        (_first, False, None, None),
        (_second, True, None, None),
        (_keyword_context, True, None, "context"),
        (_annotated, True, None, None),
        (_optional, False, None, None),
        (functools.partial(_other_order, model="m"), True, "input", "context"),
        (functools.partial(_other_order, "m"), True, None, None),
        (_asynchronous, False, None, None),
        (len, False, None, None),
    ],
)
def test_how_a_function_wants_to_be_called(
    function: Any, takes_context: bool, input_keyword: str | None, context_keyword: str | None
) -> None:
    convention = callables.convention_of(function)
    assert convention.takes_context is takes_context
    assert (convention.input_keyword, convention.context_keyword) == (input_keyword, context_keyword)
    assert convention.is_async is (function is _asynchronous)
