"""Data directories and databases for the tests of the node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from greenroom.testing import databases


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def store_url(server: databases.Server | None) -> AsyncIterator[str | None]:
    """The store to use; None: the SQLite file in the data directory."""
    if server is None:
        yield None
        return
    async with server.scratch() as scratch:
        yield scratch.url


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
