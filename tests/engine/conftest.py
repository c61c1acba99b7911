"""The contract's tests run on asyncio's own loop and on uvloop; their failures read like those of other tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# Nodes run on uvloop; these take seconds, and not of the loop: asyncio's own is tried by `make long`.
ALIKE = (
    "test_a_replica_at_work_shows_progress_unasked",
    "test_a_replica_over_its_memory_limit_is_killed",
    "test_what_its_children_hold_counts_and_what_they_share_with_it_does_not",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in [f"{name}[asyncio]" for name in ALIKE]:
            item.add_marker(pytest.mark.long)


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001  # the hook names its arguments
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name == "test_contract.py":
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
