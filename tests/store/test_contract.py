"""The contract of the store, on both databases."""

from __future__ import annotations

import pytest

from greenroom.testing import databases
from greenroom.testing.store_contract import StoreContract


class TestSqlite(StoreContract):
    @pytest.fixture
    def scratch(self, sqlite_scratch: databases.Scratch) -> databases.Scratch:
        return sqlite_scratch


class TestPostgres(StoreContract):
    @pytest.fixture
    def scratch(self, postgres_scratch: databases.Scratch) -> databases.Scratch:
        return postgres_scratch
