"""The local engine keeps the contract, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from greenroom.testing.engine_contract import EngineContract

from greenroom import clock as clocks
from greenroom.engine import local


class _Local(EngineContract):
    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[local.LocalEngine]:
        engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock())
        yield engine
        await engine.close()


class TestLocalEngine(_Local):
    pass


class TestLocalEngineOnUvloop(_Local):
    @pytest.fixture
    def event_loop_policy(self) -> asyncio.AbstractEventLoopPolicy:
        return uvloop.EventLoopPolicy()
