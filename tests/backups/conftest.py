"""Stores to back up, and places to keep backups at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from greenroom.testing import databases


@pytest.fixture
async def sqlite_scratch(tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    (tmp_path / "data").mkdir()
    async with databases.sqlite(tmp_path / "data") as scratch:
        yield scratch


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    """The PostgreSQL server; None: it is SQLite's turn."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def scratch(server: databases.Server | None, tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    if server is None:
        (tmp_path / "data").mkdir()
        async with databases.sqlite(tmp_path / "data") as made:
            yield made
        return
    async with server.scratch() as made:
        yield made
