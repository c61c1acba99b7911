"""Supervision of the loops: what a step meets must not keep its loop from being ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from greenroom import errors
from greenroom.control import supervisor

if TYPE_CHECKING:
    from control.conftest import Loops


async def test_a_loop_ends_when_it_is_cancelled_in_the_very_moment_in_which_the_store_fails(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the store's writer stops: whoever waits for it is told so, and all loops are cancelled."""
    await loops.deploy()
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_writing = asyncio.Event()

    async def put_replica(_: Any) -> None:
        is_writing.set()
        await written

    monkeypatch.setattr(loops.store.agents, "put_replica", put_replica)
    loops.host._unwritten.update(loops.host._replicas.values())
    serving = asyncio.create_task(supervisor.serve(loops.host, loops.scratch.clock, loops.told))
    await is_writing.wait()
    written.set_exception(errors.StoreUnavailable("cannot write: a test said so"))
    serving.cancel()
    await asyncio.wait([serving], timeout=5)
    assert serving.cancelled()
