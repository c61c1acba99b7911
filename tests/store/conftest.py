"""Databases for the tests of the store: one PostgreSQL server for each test process, one database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from greenroom.testing import databases


@pytest.fixture
async def sqlite_scratch(tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) as scratch:
        yield scratch


@pytest.fixture
async def postgres_scratch(postgres_server: databases.Server) -> AsyncIterator[databases.Scratch]:
    async with postgres_server.scratch() as scratch:
        yield scratch
