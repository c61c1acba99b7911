"""The local engine keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from greenroom import clock as clocks
from greenroom.engine import local
from greenroom.testing.engine_contract import EngineContract


class TestLocalEngine(EngineContract):
    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[local.LocalEngine]:
        engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock())
        yield engine
        await engine.close()
