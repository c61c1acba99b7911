"""The contract of rollouts in the store, on both databases."""

from __future__ import annotations

import pytest

from greenroom.testing import databases
from greenroom.testing.rollouts_contract import RolloutsContract


class TestSqlite(RolloutsContract):
    @pytest.fixture
    def scratch(self, sqlite_scratch: databases.Scratch) -> databases.Scratch:
        return sqlite_scratch


class TestPostgres(RolloutsContract):
    @pytest.fixture
    def scratch(self, postgres_scratch: databases.Scratch) -> databases.Scratch:
        return postgres_scratch
